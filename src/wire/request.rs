//! Parsing common to the parameters of all requests, from a query, a form or JSON.

use std::borrow::Cow;

pub use super::api_error::ApiError;
use super::json::{self, Members};
use super::params::Params;
use crate::types::{Limits, is_pid};

/// The maximum time in unix seconds; larger values (from the year 5138 on) are milliseconds by
/// mistake.
pub const MAX_UNIX_SECONDS: u64 = 99_999_999_999;

/// The source of a request's parameters. Returned values live for `'a`: the bytes of a JSON body,
/// or the decoded [`Params`] of a query or form.
pub trait Source<'a>: Copy {
    fn given(self, name: &str) -> Option<Given<'a>>;

    /// Returns the first given name that is unknown.
    fn find_unknown(self, is_known: impl Fn(&str) -> bool) -> Option<Cow<'a, str>>;

    /// Returns an optional parameter: a JSON `null` counts as absent.
    fn optional(self, name: &str) -> Option<Given<'a>> {
        self.given(name)
            .filter(|given| !matches!(given, Given::Json(value) if json::is_null(value)))
    }
}

impl<'a> Source<'a> for &Members<'a> {
    fn given(self, name: &str) -> Option<Given<'a>> {
        self.value(name).map(Given::Json)
    }

    fn find_unknown(self, is_known: impl Fn(&str) -> bool) -> Option<Cow<'a, str>> {
        self.iter().find(|member| !is_known(&member.name)).map(|member| member.name.clone())
    }
}

impl<'a> Source<'a> for &'a Params<'_> {
    fn given(self, name: &str) -> Option<Given<'a>> {
        self.get(name).map(Given::Text)
    }

    fn find_unknown(self, is_known: impl Fn(&str) -> bool) -> Option<Cow<'a, str>> {
        self.names().find(|name| !is_known(name)).map(Cow::Borrowed)
    }
}

/// One parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given<'a> {
    /// Decoded.
    Text(&'a str),
    /// A valid JSON value.
    Json(&'a [u8]),
}

impl<'a> Given<'a> {
    pub(super) fn text(self, name: &str) -> Result<Cow<'a, str>, ApiError> {
        match self {
            Self::Text(text) => Ok(Cow::Borrowed(text)),
            Self::Json(value) if json::is_string(value) => Ok(json::string(value)?),
            Self::Json(_) => Err(ApiError::bad(format!("{name} must be a string"))),
        }
    }

    /// Parses an id: in JSON it may also be an integer, which stands for its decimal text.
    pub(super) fn id(self, name: &str) -> Result<Cow<'a, str>, ApiError> {
        match self {
            Self::Json(value) if !json::is_string(value) => json::integer_text(value)
                .map(Cow::Borrowed)
                .ok_or_else(|| ApiError::bad(format!("{name} must be a string or an integer"))),
            _ => self.text(name),
        }
    }

    /// Parses decimal digits; in JSON an integer or a string of digits.
    pub(super) fn number(self, name: &str) -> Result<u64, ApiError> {
        let text = self.id(name)?;
        let is_decimal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_decimal);
        number.ok_or_else(|| {
            ApiError::bad(format!("{name} must be a whole number in decimal digits"))
        })
    }

    /// Parses a time in unix seconds.
    pub(super) fn unix_seconds(self, name: &str) -> Result<u64, ApiError> {
        let seconds = self.number(name)?;
        if is_milliseconds(seconds) {
            return Err(ApiError::bad(milliseconds_given(name, seconds)));
        }
        Ok(seconds)
    }
}

/// Whether a number of unix seconds must be milliseconds by mistake: the time would never come.
pub(super) fn is_milliseconds(unix_seconds: u64) -> bool {
    unix_seconds > MAX_UNIX_SECONDS
}

pub(super) fn milliseconds_given(name: &str, given: u64) -> String {
    format!("{name} must be in unix seconds: {given} looks like milliseconds")
}

/// Who makes the request, and the proof. Check these (project: 403, sign: 401, exp: 401) before
/// evaluating anything else of the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials<'a> {
    /// A valid project id; whether the project exists is not known yet.
    pub pid: Cow<'a, str>,
    /// Unix seconds.
    pub exp: Option<u64>,
    /// As received, to be checked by [`super::sign::check`].
    pub sign: Option<&'a str>,
}

impl<'a> Credentials<'a> {
    pub fn from_params(params: &'a Params<'_>, limits: &Limits) -> Result<Self, ApiError> {
        Self::read(params, params.get("sign"), limits)
    }

    /// `x_sign` is the header X-Sign; a member `sign` is treated as unknown.
    pub fn from_json(
        members: &Members<'a>,
        x_sign: Option<&'a str>,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        Self::read(members, x_sign, limits)
    }

    fn read(
        source: impl Source<'a>,
        sign: Option<&'a str>,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        let Some(pid) = source.given("pid") else {
            return Err(ApiError::bad("pid is missing: add the id of the project"));
        };
        let pid = pid.id("pid")?;
        let max = limits.pid_bytes;
        if !is_pid(&pid, max) {
            return Err(ApiError::bad(format!("pid must be 1-{max} bytes of [A-Za-z0-9_.-]")));
        }
        Ok(Self { pid, exp: read_exp(source)?, sign })
    }
}

/// Parses the unix seconds until which a request is valid.
pub(super) fn read_exp<'a>(source: impl Source<'a>) -> Result<Option<u64>, ApiError> {
    source.optional("exp").map(|exp| exp.unix_seconds("exp")).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn from_query(query: &str) -> Result<(String, Option<u64>, Option<String>), String> {
        let params = Params::parse(query.as_bytes()).unwrap();
        let read = Credentials::from_params(&params, &Limits::default());
        let read = read.map_err(|error| error.msg.into_owned())?;
        Ok((read.pid.into(), read.exp, read.sign.map(Into::into)))
    }

    fn from_json(body: &str) -> Result<Credentials<'_>, ApiError> {
        Credentials::from_json(&json::members(body.as_bytes())?, Some("ab"), &Limits::default())
    }

    #[test]
    fn credentials_are_read_from_a_query() {
        assert_eq!(
            from_query("pid=p&exp=17&sign=ab"),
            Ok(("p".into(), Some(17), Some("ab".into())))
        );
        assert_eq!(from_query("pid=1"), Ok(("1".into(), None, None)));
        assert_eq!(from_query("sign=ab"), Err("pid is missing: add the id of the project".into()));
        for bad in
            ["pid=", "pid=a/b", "pid=1&exp=", "pid=1&exp=-1", "pid=1&exp=%2B1", "pid=1&exp=1.5"]
        {
            assert!(from_query(bad).is_err(), "{bad}");
        }
        assert!(from_query("pid=1&exp=18446744073709551616").is_err());
    }

    #[test]
    fn credentials_are_read_from_json() {
        let expected = Credentials { pid: "7".into(), exp: Some(17), sign: Some("ab") };
        for body in [r#"{"pid":7,"exp":17}"#, r#"{"exp":"17","pid":"\u0037","sign":"x"}"#] {
            assert_eq!(from_json(body), Ok(expected.clone()), "{body}");
        }
        let bad = [
            r#"{"pid":null}"#,
            r#"{"pid":7.0}"#,
            r#"{"pid":["7"]}"#,
            r#"{"pid":"é"}"#,
            r#"{}"#,
            "[]",
            "{",
            r#"{"pid":7,"exp":1e3}"#,
            r#"{"pid":7,"exp":-1}"#,
            r#"{"pid":7,"pid":7}"#,
            r#"{"pid":7,"a":1,"\u0061":2}"#,
        ];
        for body in bad {
            assert_eq!(from_json(body).map_err(|error| error.status), Err(400), "{body}");
        }
    }

    #[test]
    fn null_is_no_exp() {
        assert_eq!(from_json(r#"{"pid":7,"exp":null}"#).unwrap().exp, None);
    }

    /// Taken for seconds, such a time would lie 50,000 years ahead, and the signature would never
    /// expire.
    #[test]
    fn milliseconds_are_no_exp() {
        assert_eq!(from_query("pid=1&exp=99999999999").unwrap().1, Some(99_999_999_999));
        let refused = "exp must be in unix seconds: 100000000000 looks like milliseconds";
        assert_eq!(from_query("pid=1&exp=100000000000"), Err(refused.into()));
        assert_eq!(from_json(r#"{"pid":1,"exp":100000000000}"#).unwrap_err().msg, refused);
        assert!(from_query("pid=1&exp=1700000000000").is_err());
    }

    #[test]
    fn a_pid_is_bounded() {
        let limits = Limits { pid_bytes: 3, ..Limits::default() };
        let read = |text: &str| {
            let params = Params::parse(text.as_bytes()).unwrap();
            Credentials::from_params(&params, &limits).map_err(|error| error.msg).map(drop)
        };
        assert_eq!(read("pid=abc"), Ok(()));
        assert_eq!(read("pid=abcd"), Err("pid must be 1-3 bytes of [A-Za-z0-9_.-]".into()));
        let pid = |length: usize| from_query(&format!("pid={}", "p".repeat(length)));
        assert!(pid(64).is_ok() && pid(65).is_err());
    }

    proptest! {
        #[test]
        fn any_body_cut_anywhere_never_panics(body in r#"[{}":,pidexp0-9\\\[\] ]{0,40}"#) {
            for cut in 0..=body.len() {
                let _ = from_json(&body[..cut]);
            }
        }
    }
}
