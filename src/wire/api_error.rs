//! Why a well-formed HTTP request is rejected.

use super::http::HttpError;
use super::json::JsonError;
use std::borrow::Cow;

/// The status, and a message for the client that names the parameter and describes valid values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {msg}")]
pub struct ApiError {
    pub status: u16,
    pub msg: Cow<'static, str>,
}

impl ApiError {
    pub(super) fn bad(msg: impl Into<Cow<'static, str>>) -> Self {
        Self { status: 400, msg: msg.into() }
    }
}

impl From<HttpError> for ApiError {
    fn from(error: HttpError) -> Self {
        Self { status: error.status, msg: error.msg.into() }
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        Self::bad(error.to_string())
    }
}
