//! A strict RFC 8259 reader that keeps source spans: `data` is passed on byte for byte.
//!
//! It never recurses (the stack of open containers is one `u128`, hence [`MAX_DEPTH`]), treats
//! numbers of any size as text, and allocates only for an escaped name, an escaped string that is
//! decoded, or an object of more than eight members.
//!
//! Call [`members`] or [`validate`] on input from a peer. The spans they return are valid JSON
//! values, suitable for [`elements`], [`string`], [`integer`] or again [`members`].

use std::borrow::Cow;
use std::ops::Range;

use smallvec::SmallVec;

use crate::types::quoted;

/// Maximum nesting depth of arrays and objects.
pub const MAX_DEPTH: u32 = u128::BITS;
/// Maximum number of members of an object that is split: they are sorted to find duplicate names.
pub const MAX_MEMBERS: usize = 1_024;

/// Above this number of members, duplicate names are found by sorting: a hostile object costs n log
/// n.
const PAIRWISE_MEMBERS: usize = 16;

/// Why bytes are not the expected JSON. Offsets are relative to the start of the given bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    #[error("the JSON is not UTF-8")]
    Utf8,
    #[error("the JSON ends too early")]
    Truncated,
    #[error("the JSON is malformed at byte {0}")]
    Syntax(usize),
    #[error("the JSON is nested deeper than {MAX_DEPTH}")]
    Depth,
    #[error("the member {} of the JSON object is given twice", quoted(.0))]
    Repeated(Box<str>),
    #[error("the JSON object has more than {MAX_MEMBERS} members")]
    Members,
    #[error("a lone surrogate in a JSON string")]
    Surrogate,
    #[error("not a JSON object")]
    NotObject,
    #[error("not a JSON array")]
    NotArray,
    #[error("not a JSON string")]
    NotString,
}

/// Checks that `text` is exactly one JSON value, with optional whitespace around it. A lone
/// surrogate escape (`\ud800`) is grammatical, so it passes here and fails when it is decoded.
pub fn validate(text: &[u8]) -> Result<(), JsonError> {
    let mut scanner = Scanner::new(utf8(text)?.as_bytes());
    scanner.skip_blanks();
    scanner.value(0)?;
    scanner.end()
}

/// The members of one object in source order, without duplicate names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Members<'a> {
    list: SmallVec<[Member<'a>; 8]>,
}

/// One member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member<'a> {
    /// Decoded.
    pub name: Cow<'a, str>,
    /// The valid JSON value as received, without surrounding whitespace.
    pub value: &'a [u8],
}

impl<'a> Members<'a> {
    /// Returns the value of the member with that name.
    pub fn value(&self, name: &str) -> Option<&'a [u8]> {
        self.list.iter().find(|member| member.name == name).map(|member| member.value)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Member<'a>> {
        self.list.iter()
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Validates `text`, which must be one object, and splits it into its members.
///
/// Rejects duplicate names, compared after decoding, names that are not valid text (a lone
/// surrogate), and more than [`MAX_MEMBERS`]. Nested objects are checked for grammar only.
pub fn members(text: &[u8]) -> Result<Members<'_>, JsonError> {
    let mut members = Members::default();
    read_members(text, &mut members)?;
    Ok(members)
}

/// As [`members`]; if the object is rejected, `members` holds what was read before the error.
pub fn read_members<'a>(text: &'a [u8], members: &mut Members<'a>) -> Result<(), JsonError> {
    let text = utf8(text)?;
    let bytes = text.as_bytes();
    let mut scanner = Scanner::new(bytes);
    scanner.skip_blanks();
    if !scanner.take(b'{') {
        scanner.value(0)?;
        scanner.end()?;
        return Err(JsonError::NotObject);
    }
    scanner.skip_blanks();
    if !scanner.take(b'}') {
        loop {
            let name = unescape(&text[scanner.name()?])?;
            let start = scanner.at;
            scanner.value(1)?;
            if members.list.len() == MAX_MEMBERS {
                return Err(JsonError::Members);
            }
            members.list.push(Member { name, value: &bytes[start..scanner.at] });
            scanner.skip_blanks();
            if scanner.take(b'}') {
                break;
            }
            scanner.expect(b',')?;
            scanner.skip_blanks();
        }
    }
    scanner.end()?;
    match repeated_name(&members.list) {
        Some(name) => Err(JsonError::Repeated(name.into())),
        None => Ok(()),
    }
}

/// Iterates over the elements of an array, a span from [`members`] or [`Elements`].
///
/// The grammar is checked along the way (an error ends the iteration), UTF-8 is not.
pub fn elements(array: &[u8]) -> Result<Elements<'_>, JsonError> {
    let mut scanner = Scanner::new(array);
    scanner.skip_blanks();
    if !scanner.take(b'[') {
        return Err(JsonError::NotArray);
    }
    scanner.skip_blanks();
    Ok(Elements { scanner, position: Position::Start })
}

/// The elements of an array, each a span without surrounding whitespace.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    scanner: Scanner<'a>,
    position: Position,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Position {
    Start,
    Inside,
    Ended,
}

impl<'a> Elements<'a> {
    fn step(&mut self) -> Result<Option<&'a [u8]>, JsonError> {
        let scanner = &mut self.scanner;
        if scanner.take(b']') {
            return scanner.end().map(|()| None);
        }
        if self.position == Position::Inside {
            scanner.expect(b',')?;
            scanner.skip_blanks();
        }
        let start = scanner.at;
        scanner.value(1)?;
        let element = &scanner.text[start..scanner.at];
        scanner.skip_blanks();
        self.position = Position::Inside;
        Ok(Some(element))
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Result<&'a [u8], JsonError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position == Position::Ended {
            return None;
        }
        let step = self.step();
        if !matches!(step, Ok(Some(_))) {
            self.position = Position::Ended;
        }
        step.transpose()
    }
}

pub fn is_string(value: &[u8]) -> bool {
    value.first() == Some(&b'"')
}

pub fn is_array(value: &[u8]) -> bool {
    value.first() == Some(&b'[')
}

pub fn is_object(value: &[u8]) -> bool {
    value.first() == Some(&b'{')
}

pub fn is_null(value: &[u8]) -> bool {
    value == b"null"
}

/// Decodes a string value; borrows if nothing is escaped. A lone surrogate is an error.
pub fn string(value: &[u8]) -> Result<Cow<'_, str>, JsonError> {
    let body = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    unescape(utf8(body.ok_or(JsonError::NotString)?)?)
}

/// Returns the value if it is an integer from 0 to 2^64 - 1, written without fraction and exponent.
pub fn integer(value: &[u8]) -> Option<u64> {
    integer_text(value)?.parse().ok()
}

/// Returns the text of an integer value of any size, optionally negative.
pub fn integer_text(value: &[u8]) -> Option<&str> {
    let digits = value.strip_prefix(b"-").unwrap_or(value);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    utf8(value).ok()
}

/// Appends `text` as a JSON string, quoted, with only the escapes that JSON requires.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    out.reserve(rest.len() + 2);
    out.push(b'"');
    loop {
        let (plain, tail) = rest.split_at(plain_run(rest));
        out.extend_from_slice(plain);
        let Some((&special, tail)) = tail.split_first() else {
            break;
        };
        write_escape(out, special);
        rest = tail;
    }
    out.push(b'"');
}

fn write_escape(out: &mut Vec<u8>, special: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match special {
        b'"' | b'\\' => special,
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            let digits = [HEX[usize::from(special >> 4)], HEX[usize::from(special & 15)]];
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&digits);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn utf8(bytes: &[u8]) -> Result<&str, JsonError> {
    simdutf8::basic::from_utf8(bytes).map_err(|_| JsonError::Utf8)
}

fn repeated_name<'m>(members: &'m [Member<'_>]) -> Option<&'m str> {
    if members.len() <= PAIRWISE_MEMBERS {
        let mut seen = 0..members.len();
        let is_repeated =
            |at: &usize| members[..*at].iter().any(|earlier| earlier.name == members[*at].name);
        return seen.find(is_repeated).map(|at| &*members[at].name);
    }
    let mut names: Vec<&str> = members.iter().map(|member| member.name.as_ref()).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// A position in JSON text. Each step leaves `at` after what it read; after an error the scanner is
/// unusable.
#[derive(Debug, Clone)]
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.take(byte) { Ok(()) } else { Err(self.wrong()) }
    }

    /// Returns the error for an unexpected byte, or for the end of the input.
    fn wrong(&self) -> JsonError {
        if self.at < self.text.len() { JsonError::Syntax(self.at) } else { JsonError::Truncated }
    }

    fn skip_blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    /// Accepts only whitespace up to the end.
    fn end(&mut self) -> Result<(), JsonError> {
        self.skip_blanks();
        if self.at == self.text.len() { Ok(()) } else { Err(self.wrong()) }
    }

    /// Reads one value, from its first byte to its last, inside `outer` open containers.
    fn value(&mut self, outer: u32) -> Result<(), JsonError> {
        let mut open = Open { objects: 0, depth: outer };
        loop {
            match self.peek() {
                Some(b'"') => _ = self.string()?,
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b'{') => {
                    open.push(true)?;
                    self.at += 1;
                    self.skip_blanks();
                    if self.peek() != Some(b'}') {
                        self.name()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    open.push(false)?;
                    self.at += 1;
                    self.skip_blanks();
                    if self.peek() != Some(b']') {
                        continue;
                    }
                }
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(self.wrong()),
            }
            if !self.is_value_next(&mut open, outer)? {
                return Ok(());
            }
        }
    }

    /// After a value, or before the end of an empty container: closes the containers that end here
    /// and moves to the next value. Returns false once no container is open.
    fn is_value_next(&mut self, open: &mut Open, outer: u32) -> Result<bool, JsonError> {
        while open.depth > outer {
            self.skip_blanks();
            match (self.peek(), open.is_object()) {
                (Some(b','), true) => {
                    self.at += 1;
                    self.skip_blanks();
                    self.name()?;
                    return Ok(true);
                }
                (Some(b','), false) => {
                    self.at += 1;
                    self.skip_blanks();
                    return Ok(true);
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    open.pop();
                }
                _ => return Err(self.wrong()),
            }
        }
        Ok(false)
    }

    /// Reads a member's name, its colon and the whitespace after it; returns the name's range,
    /// without quotes.
    fn name(&mut self) -> Result<Range<usize>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.wrong());
        }
        let name = self.string()?;
        self.skip_blanks();
        self.expect(b':')?;
        self.skip_blanks();
        Ok(name)
    }

    /// Reads a string, from its opening quote; returns the range between the quotes.
    fn string(&mut self) -> Result<Range<usize>, JsonError> {
        self.at += 1;
        let start = self.at;
        loop {
            self.at += plain_run(&self.text[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(start..self.at - 1);
                }
                Some(b'\\') => self.escape()?,
                _ => return Err(self.wrong()),
            }
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.wrong());
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.wrong()),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _is_signed = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(())
    }

    /// Reads one or more digits.
    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(self.wrong()) }
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), JsonError> {
        word.iter().try_for_each(|&byte| self.expect(byte))
    }
}

/// The open containers, innermost in the lowest bit: 1 for an object, 0 for an array.
struct Open {
    objects: u128,
    depth: u32,
}

impl Open {
    fn push(&mut self, is_object: bool) -> Result<(), JsonError> {
        if self.depth == MAX_DEPTH {
            return Err(JsonError::Depth);
        }
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(is_object);
        Ok(())
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
    }

    fn is_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

/// Returns the length of the prefix of `text` without quotes, backslashes and control characters.
fn plain_run(text: &[u8]) -> usize {
    let (words, tail) = text.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let special = special_bytes(u64::from_le_bytes(*word));
        if special != 0 {
            return index * 8 + special.trailing_zeros() as usize / 8;
        }
    }
    let is_special = |&byte: &u8| byte < 0x20 || byte == b'"' || byte == b'\\';
    words.len() * 8 + tail.iter().position(is_special).unwrap_or(tail.len())
}

/// Sets the top bit of bytes that end a plain run. The subtraction borrows from the next higher
/// byte, so bits above the lowest set one may be wrong; the lowest never is, and none is missing.
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let quote = word ^ (ONES * b'"' as u64);
    let backslash = word ^ (ONES * b'\\' as u64);
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = quote.wrapping_sub(ONES) & !quote;
    let backslash = backslash.wrapping_sub(ONES) & !backslash;
    (control | quote | backslash) & (ONES * 0x80)
}

/// Decodes the contents of a string, without its quotes.
fn unescape(body: &str) -> Result<Cow<'_, str>, JsonError> {
    if !body.as_bytes().contains(&b'\\') {
        return Ok(Cow::Borrowed(body));
    }
    let mut decoded = String::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = rest.find('\\') {
        decoded.push_str(&rest[..at]);
        let (character, length) = decode_escape(&rest.as_bytes()[at..])?;
        decoded.push(character);
        rest = &rest[at + length..];
    }
    decoded.push_str(rest);
    Ok(Cow::Owned(decoded))
}

/// Decodes the escape at the start of `bytes`; returns the character and the escape's length in
/// bytes.
fn decode_escape(bytes: &[u8]) -> Result<(char, usize), JsonError> {
    let character = match bytes.get(1) {
        Some(&byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return decode_unicode_escape(bytes),
        _ => return Err(JsonError::Syntax(0)),
    };
    Ok((character, 2))
}

fn decode_unicode_escape(bytes: &[u8]) -> Result<(char, usize), JsonError> {
    let first = code_unit(bytes).ok_or(JsonError::Syntax(0))?;
    if let Some(character) = char::from_u32(first) {
        return Ok((character, 6));
    }
    let second = code_unit(&bytes[6..]).unwrap_or_default();
    if !(0xd800..0xdc00).contains(&first) || !(0xdc00..0xe000).contains(&second) {
        return Err(JsonError::Surrogate);
    }
    let scalar = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    char::from_u32(scalar).map(|character| (character, 12)).ok_or(JsonError::Surrogate)
}

/// Decodes the UTF-16 code unit of the `\u0000` at the start of `bytes`.
fn code_unit(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.get(..6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_their_bytes() {
        let text =
            b" {\"pid\" : 1, \"data\":{ \"a\" : [1, 2e5 ] } ,\"\\u0069d\":\"\\n\",\"n\":[]}\r\n";
        let object = members(text).unwrap();
        let expected =
            [("pid", "1"), ("data", "{ \"a\" : [1, 2e5 ] }"), ("id", "\"\\n\""), ("n", "[]")]
                .map(|(name, value)| (name, value.as_bytes()));
        assert!(object.iter().map(|m| (m.name.as_ref(), m.value)).eq(expected));
        assert_eq!(object.value("pid"), Some(&b"1"[..]));
        assert_eq!(object.value("sign"), None);
        assert!(members(b"{ }").unwrap().is_empty());
        assert_eq!(members(b"[{}]"), Err(JsonError::NotObject));
        assert_eq!(members(b"[{}"), Err(JsonError::Truncated));
        assert_eq!(members(b"{\"a\":1}x"), Err(JsonError::Syntax(7)));
    }

    #[test]
    fn a_member_given_twice_is_refused() {
        assert_eq!(members(b"{\"pid\":1,\"p\\u0069d\":2}"), Err(JsonError::Repeated("pid".into())));
        assert!(members(b"{\"a\":{\"b\":1,\"b\":2},\"b\":3}").is_ok());
        let many = |last: usize| {
            let list: Vec<String> = (0..500).chain([last]).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", list.join(","))
        };
        assert_eq!(members(many(500).as_bytes()).unwrap().len(), 501);
        assert_eq!(members(many(250).as_bytes()), Err(JsonError::Repeated("250".into())));
    }

    #[test]
    fn the_grammar_is_strict() {
        let good =
            "0 -0 1.5e+7 1E400 123456789012345678901234567890 true null \"\\ud800\" \"\\/\" [] {}";
        for text in good.split(' ') {
            assert_eq!(validate(text.as_bytes()), Ok(()), "{text}");
        }
        let bad = "01 +1 .5 1. 1e -a nul truex \"\\x\" \"\\u12g4\" [1,] [,1] {\"a\":1,} {\"a\"} \
                   {a:1} \
                   {1:1} [1}  {\"a\":1] \" ] \u{feff}1 'a' NaN [1:2] /**/1";
        for text in bad.split(' ') {
            assert!(validate(text.as_bytes()).is_err(), "{text}");
        }
        for text in [&b"\"a\nb\""[..], b"\"\0\"", b"1 2", b"\x0b1", b"[\"a\" \"b\"]"] {
            assert!(matches!(validate(text), Err(JsonError::Syntax(_))), "{text:?}");
        }
        assert_eq!(validate(b"\"\xff\""), Err(JsonError::Utf8));
        assert_eq!(members(b"{\"a\":\"\xc0\x80\"}"), Err(JsonError::Utf8));
        assert_eq!(members(b"{\"\\ud800\":1}"), Err(JsonError::Surrogate));
    }

    #[test]
    fn depth_is_bounded_and_counts_the_object_around() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(validate(nested(128).as_bytes()), Ok(()));
        assert_eq!(validate(nested(129).as_bytes()), Err(JsonError::Depth));
        assert_eq!(validate("[".repeat(1 << 20).as_bytes()), Err(JsonError::Depth));
        let inside = |depth| format!("{{\"a\":{}}}", nested(depth));
        assert!(members(inside(127).as_bytes()).is_ok());
        assert_eq!(members(inside(128).as_bytes()), Err(JsonError::Depth));
    }

    #[test]
    fn elements_walk_an_array() {
        let walk = |text: &'static str| -> Result<Vec<&[u8]>, JsonError> {
            elements(text.as_bytes())?.collect()
        };
        assert_eq!(walk("[ ]"), Ok(vec![]));
        assert_eq!(walk("[1, {\"a\":[2]} ,\"x\"]"), Ok(vec![&b"1"[..], b"{\"a\":[2]}", b"\"x\""]));
        assert_eq!(walk("{}"), Err(JsonError::NotArray));
        for bad in ["[1", "[1,]", "[1 2]", "[]]", "[", "[1]x"] {
            assert!(walk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn scalars_decode() {
        assert!(matches!(string(b"\"a\xc3\xa9\""), Ok(Cow::Borrowed("aé"))));
        assert_eq!(string(br#""\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00x""#).unwrap(), {
            "\"\\/\u{8}\u{c}\n\r\té😀x"
        });
        for lone in [r#""\ud800""#, r#""\udc00""#, r#""\ud800\u0041""#, r#""\ud800\ud800""#] {
            assert_eq!(string(lone.as_bytes()), Err(JsonError::Surrogate), "{lone}");
        }
        assert_eq!(string(b"1"), Err(JsonError::NotString));
        assert_eq!(string(b"\""), Err(JsonError::NotString));
        assert_eq!(integer(b"18446744073709551615"), Some(u64::MAX));
        for not in [&b"18446744073709551616"[..], b"-1", b"1.0", b"1e3", b"\"1\"", b"null", b"-"] {
            assert_eq!(integer(not), None, "{not:?}");
        }
        assert_eq!(integer_text(b"-12345678901234567890123"), Some("-12345678901234567890123"));
        assert!(is_string(b"\"\"") && is_array(b"[]") && is_object(b"{}") && is_null(b"null"));
    }

    #[test]
    fn every_byte_ends_a_plain_run_at_its_place_or_never() {
        for byte in 0..=255u8 {
            for place in 0..20 {
                let mut text = [b'~'; 20];
                text[place] = byte;
                let is_special = byte < 0x20 || byte == b'"' || byte == b'\\';
                assert_eq!(plain_run(&text), if is_special { place } else { 20 }, "{byte} {place}");
            }
        }
    }
}
