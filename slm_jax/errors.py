"""The one exception that means "the user can fix this"."""


class UserError(Exception):
  """A mistake in a config, a file or a command line.

  The message is one line: it names the thing, what was expected, and what to change. The command line
  prints it without a traceback and exits with status 2.
  """

  def __init__(self, message: str):
    super().__init__(" ".join(message.split()))
