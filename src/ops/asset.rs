//! Built-in files. A browser caches them and revalidates each time that they are still this
//! version's.

use super::reply::Reply;
use crate::wire::http::Head;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;

pub const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
pub const CSS: &str = "text/css; charset=utf-8";
/// Bytes of the hash used as a file's ETag. This few suffice: nobody gains by forging one.
const TAG_BYTES: usize = 12;

pub struct Asset {
    pub path: &'static str,
    pub content_type: &'static str,
    pub bytes: &'static [u8],
}

impl Asset {
    pub const fn script(path: &'static str, bytes: &'static [u8]) -> Self {
        Self { path, content_type: JAVASCRIPT, bytes }
    }

    pub const fn css(path: &'static str, bytes: &'static [u8]) -> Self {
        Self { path, content_type: CSS, bytes }
    }

    /// Returns the file, or 304 if the browser has it.
    pub fn answer(&self, head: &Head<'_>) -> Reply {
        let tag = tag(self.bytes);
        let reply = match head.if_none_match {
            Some(known) if is_among(&tag, known) => Reply::new(304, "", ""),
            _ => Reply::new(200, self.content_type, self.bytes),
        };
        reply
            .with("ETag", tag)
            .with("Cache-Control", "no-cache")
            .with("X-Content-Type-Options", "nosniff")
    }
}

fn tag(bytes: &[u8]) -> String {
    let mut tag = String::from("\"");
    for byte in &Sha256::digest(bytes)[..TAG_BYTES] {
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    tag
}

/// Returns whether `If-None-Match` lists the tag (RFC 9110, section 13.1.2).
fn is_among(tag: &str, known: &str) -> bool {
    known.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_found_in_a_list() {
        let tag = tag(b"a file");
        assert_eq!(tag.len(), 2 * TAG_BYTES + 2);
        for known in [tag.clone(), format!("\"x\", W/{tag}"), "*".into()] {
            assert!(is_among(&tag, &known), "{known}");
        }
        for other in ["", "\"\"", tag.trim_matches('"'), &super::tag(b"another file")] {
            assert!(!is_among(&tag, other), "{other}");
        }
    }
}
