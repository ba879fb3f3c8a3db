"""What can keep a cluster from coming up."""


class ClusterError(Exception):
    """One sentence with the next step."""
