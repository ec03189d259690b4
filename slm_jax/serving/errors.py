"""What a client did wrong, and what a server cannot do now, in OpenAI's form."""


class RequestError(Exception):
  """Answered with `status` and `{"error": {message, type, param, code}}`."""

  status = 500
  kind = "server_error"

  def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
    super().__init__(message)
    self.param, self.code = param, code

  def body(self) -> dict:
    """The JSON of the answer."""
    error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
    return {"error": error}


class BadRequest(RequestError):
  status, kind = 400, "invalid_request_error"


class Unauthorized(RequestError):
  status, kind = 401, "invalid_request_error"


class NotFound(RequestError):
  status, kind = 404, "invalid_request_error"


class TooLarge(RequestError):
  status, kind = 413, "invalid_request_error"


class Busy(RequestError):
  status, kind = 429, "rate_limit_error"


class Unready(RequestError):
  status, kind = 503, "server_error"
