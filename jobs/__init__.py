"""The commands: one function `Config -> result` each; here alone parts are put together."""
