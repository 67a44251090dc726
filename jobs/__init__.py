"""The commands: one function `Config -> result` each, the only place where parts are put together."""
