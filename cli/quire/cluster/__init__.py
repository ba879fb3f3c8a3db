"""What commands ask of a cluster: the few reads over HTTP, and one sentence for each way to fail."""
