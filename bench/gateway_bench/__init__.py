"""The gateway and the scaling law beside their rivals: simulated in virtual time, and measured over real HTTP."""
