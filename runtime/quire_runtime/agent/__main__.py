"""`python -m quire_runtime.agent`"""

from quire_runtime.agent.main import run

if __name__ == "__main__":
    run()
