//! A site's reply.

use std::borrow::Cow;

/// The reply of a site, before it is written as HTTP.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub content_type: Cow<'static, str>,
    pub fields: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn new(
        status: u16,
        content_type: impl Into<Cow<'static, str>>,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        let (content_type, body) = (content_type.into(), body.into());
        Self { status, content_type, fields: Vec::new(), body }
    }

    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, "text/plain; charset=utf-8", body)
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }
}
