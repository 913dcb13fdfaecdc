//! A streaming JSON writer.

use crate::wire::json::write_string;
use std::fmt::Display;
use std::io::Write as _;

/// An open object: every call adds a member.
pub(super) struct Object<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

/// Returns a complete object.
pub(super) fn object(fill: impl FnOnce(&mut Object<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    Object::write(&mut out, fill);
    out
}

impl Object<'_> {
    fn write(out: &mut Vec<u8>, fill: impl FnOnce(&mut Object<'_>)) {
        out.push(b'{');
        fill(&mut Object { out, is_empty: true });
        out.push(b'}');
    }

    fn name(&mut self, name: &str) {
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
        write_string(self.out, name);
        self.out.push(b':');
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        write_string(self.out, value);
    }

    /// Adds a finite number or a boolean.
    pub(super) fn value(&mut self, name: &str, value: impl Display) {
        self.name(name);
        // Writing to a Vec cannot fail.
        let _ = write!(self.out, "{value}");
    }

    pub(super) fn values<T: Display>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        self.list(name, values, |out, value| {
            let _ = write!(out, "{value}");
        });
    }

    pub(super) fn object(&mut self, name: &str, fill: impl FnOnce(&mut Object<'_>)) {
        self.name(name);
        Object::write(self.out, fill);
    }

    pub(super) fn objects<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        fill: impl Fn(&mut Object<'_>, T),
    ) {
        self.list(name, items, |out, item| Object::write(out, |object| fill(object, item)));
    }

    fn list<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        write: impl Fn(&mut Vec<u8>, T),
    ) {
        self.name(name);
        self.out.push(b'[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            write(self.out, item);
        }
        self.out.push(b']');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_member() {
        let written = object(|top| {
            top.text("a\"b", "c\n");
            top.value("n", u64::MAX);
            top.value("yes", true);
            top.values("bounds", [0.000_05, 10.0]);
            top.values("none", [0; 0]);
            top.object("empty", |_| {});
            top.objects("list", 1..=2, |one, n| one.value("n", n));
        });
        assert_eq!(
            String::from_utf8(written).unwrap(),
            r#"{"a\"b":"c\n","n":18446744073709551615,"yes":true,"bounds":[0.00005,10],"none":[],"#
                .to_owned()
                + r#""empty":{},"list":[{"n":1},{"n":2}]}"#
        );
    }
}
