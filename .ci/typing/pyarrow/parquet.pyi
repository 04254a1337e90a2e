"""pyarrow has no types: what it gives is Any."""

from typing import Any

def __getattr__(name: str) -> Any: ...
