{{- /* Values of an older chart lack what this one reads, if `helm upgrade --reuse-values` keeps them as they are. */ -}}
{{- define "quire.checkValues" -}}
{{- if not (and .Values.images .Values.images.agent .Values.gateway .Values.gateway.tls .Values.operator .Values.monitoring) -}}
{{- fail "images.agent, gateway.tls, operator or monitoring is missing, as in the values of an older chart: upgrade with --reset-then-reuse-values instead of --reuse-values, and set none of them to null." -}}
{{- end -}}
{{- with .Values.gateway -}}
{{- if and .tls.secretName .tls.keepHTTP (eq (int .tls.port) (int .service.port)) -}}
{{- fail (printf "gateway.tls.port and gateway.service.port are both %d, and gateway.tls.keepHTTP asks for both: give them different ports." (int .tls.port)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "quire.labels" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: quire
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "quire.selector" -}}
app.kubernetes.io/name: {{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "quire.image" -}}
{{- with .root.Values.images.registry }}{{ . | trimSuffix "/" }}/{{ end -}}
{{ .image.repository }}
{{- with .image.digest }}@{{ . }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "quire.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "quire.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "quire.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "quire.internalKeyEnv" -}}
- name: QUIRE_INTERNAL_KEY
  valueFrom:
    secretKeyRef:
      name: quire-internal
      key: key
{{- end }}

{{- /* Whether the gateway's Service answers plain HTTP. */ -}}
{{- define "quire.plainHTTP" -}}
{{- or (not .Values.gateway.tls.secretName) .Values.gateway.tls.keepHTTP -}}
{{- end }}

{{- /* Base address of the gateway's Service, without a path. */ -}}
{{- define "quire.gatewayURL" -}}
{{- $host := printf "quire-gateway.%s.svc" .Release.Namespace -}}
{{- if .Values.gateway.tls.secretName -}}
https://{{ $host }}{{ if ne (int .Values.gateway.tls.port) 443 }}:{{ .Values.gateway.tls.port }}{{ end }}
{{- else -}}
http://{{ $host }}{{ if ne (int .Values.gateway.service.port) 80 }}:{{ .Values.gateway.service.port }}{{ end }}
{{- end -}}
{{- end }}
