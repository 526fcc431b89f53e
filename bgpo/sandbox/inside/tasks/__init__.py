"""Tasks: functions `(arguments: dict, fds: list[int]) -> JSON value`, named `module:function`."""
