//! The selectors of pushes, kicks and `online`: which clients they are for.

use std::borrow::Cow;
use std::fmt;

use smallvec::SmallVec;

use super::envelope::{CidsBuf, NamesBuf, TargetsBuf};
use super::json;
use super::request::{ApiError, Given, Source};
use super::tags::split;
use crate::types::{Cid, Limits, in_one_line, is_device, is_name, quoted};

/// Characters of a JSON value shown in an error.
const SHOWN_CHARS: usize = 40;

/// Reads `uids`, `cids`, `tags`, `devices` and `except_cids`, without duplicates.
///
/// Lists are comma-separated, with blanks around elements ignored; in JSON they may also be arrays
/// of strings, uids and cids also integers. A selector that is given but empty matches nobody. 400
/// for malformed or too long lists, and for `null`: its intended meaning is unknown.
pub fn read_targets<'a>(source: impl Source<'a>, limits: &Limits) -> Result<TargetsBuf, ApiError> {
    let max = limits.selector_ids;
    let names = |selector: &Selector| {
        source.given(selector.name).map(|given| read_names(selector, given, max)).transpose()
    };
    let cids = |selector: &Selector| {
        source.given(selector.name).map(|given| read_cids(selector, given, max)).transpose()
    };
    let uids = Selector { name: "uids", rule: Rule::Name(limits.uid_bytes), takes_integers: true };
    let tags = Selector { name: "tags", rule: Rule::Name(limits.tag_bytes), takes_integers: false };
    let devices = Rule::Device(limits.device_bytes);
    let devices = Selector { name: "devices", rule: devices, takes_integers: false };
    Ok(TargetsBuf {
        uids: names(&uids)?,
        cids: cids(&CIDS)?,
        tags: names(&tags)?,
        devices: names(&devices)?,
        except_cids: cids(&EXCEPT_CIDS)?,
    })
}

struct Selector {
    name: &'static str,
    rule: Rule,
    /// Whether an element may be a JSON integer.
    takes_integers: bool,
}

const CIDS: Selector = Selector { name: "cids", rule: Rule::Cid, takes_integers: true };
const EXCEPT_CIDS: Selector = Selector { name: "except_cids", ..CIDS };

/// The format of one element; displayed after "each element".
enum Rule {
    /// A uid or a tag, with its maximum length in bytes.
    Name(usize),
    Device(usize),
    Cid,
}

impl Rule {
    fn holds(&self, text: &str) -> bool {
        match *self {
            Self::Name(max) => is_name(text, max),
            Self::Device(max) => is_device(text, max),
            Self::Cid => text.parse::<Cid>().is_ok(),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(max) => write!(f, "1-{max} bytes without control characters or commas"),
            Self::Device(max) => write!(f, "1-{max} bytes of [a-z0-9_-]"),
            Self::Cid => f.write_str("a client id in decimal digits"),
        }
    }
}

fn read_names(selector: &Selector, given: Given<'_>, max: usize) -> Result<NamesBuf, ApiError> {
    with_elements(selector, given, |elements| {
        let mut names = NamesBuf::default();
        for name in distinct(selector, elements, max, Some)? {
            names.push(name.as_bytes());
        }
        Ok(names)
    })
}

fn read_cids(selector: &Selector, given: Given<'_>, max: usize) -> Result<CidsBuf, ApiError> {
    with_elements(selector, given, |elements| {
        let mut cids = CidsBuf::default();
        for cid in distinct(selector, elements, max, |text| text.parse::<Cid>().ok())? {
            cids.push(cid);
        }
        Ok(cids)
    })
}

type Elements<'i, 'a> = &'i mut dyn Iterator<Item = Result<Element<'a>, ApiError>>;

/// One element of a list.
enum Element<'a> {
    Text(Cow<'a, str>),
    /// A JSON value that the selector does not accept.
    Other(&'a [u8]),
}

/// Calls `read` with the elements, in whichever form they were given.
fn with_elements<T>(
    selector: &Selector,
    given: Given<'_>,
    read: impl FnOnce(Elements<'_, '_>) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    match given {
        Given::Text(text) => read(&mut texts(text)),
        Given::Json(value) if json::is_string(value) => read(&mut texts(&json::string(value)?)),
        Given::Json(value) if json::is_array(value) => {
            read(&mut json::elements(value)?.map(|element| element_of(selector, element?)))
        }
        Given::Json(value) => match element_of(selector, value)? {
            Element::Other(_) => Err(no_list(selector)),
            integer => read(&mut std::iter::once(Ok(integer))),
        },
    }
}

fn texts(list: &str) -> impl Iterator<Item = Result<Element<'_>, ApiError>> {
    split(list).map(|element| Ok(Element::Text(Cow::Borrowed(element))))
}

fn element_of<'a>(selector: &Selector, value: &'a [u8]) -> Result<Element<'a>, ApiError> {
    let integer = json::integer_text(value).filter(|_| selector.takes_integers);
    match integer {
        Some(integer) => Ok(Element::Text(Cow::Borrowed(integer))),
        None if json::is_string(value) => Ok(Element::Text(json::string(value)?)),
        None => Ok(Element::Other(value)),
    }
}

/// Returns the elements, sorted and without duplicates; duplicates count towards `max`.
fn distinct<'a, T: Ord>(
    selector: &Selector,
    elements: Elements<'_, 'a>,
    max: usize,
    convert: impl Fn(Cow<'a, str>) -> Option<T>,
) -> Result<SmallVec<[T; 16]>, ApiError> {
    let mut list = SmallVec::new();
    for element in elements {
        let index = list.len();
        if index == max {
            let msg =
                format!("{}: at most {max} in one selector; split the request", selector.name);
            return Err(ApiError::bad(msg));
        }
        let text = match element? {
            Element::Text(text) if selector.rule.holds(&text) => text,
            wrong => return Err(malformed(selector, index, &wrong)),
        };
        list.extend(convert(text));
    }
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

fn no_list(selector: &Selector) -> ApiError {
    let Selector { name, rule, .. } = selector;
    ApiError::bad(format!("{name} must be a comma-separated list or an array, each element {rule}"))
}

fn malformed(selector: &Selector, index: usize, element: &Element<'_>) -> ApiError {
    let Selector { name, rule, takes_integers } = selector;
    ApiError::bad(match element {
        Element::Text(text) => {
            let shown = quoted(text);
            format!("{name} must be a list, each element {rule}: {name}[{index}] is {shown}")
        }
        Element::Other(value) => {
            let wanted = if *takes_integers { "strings or integers" } else { "strings" };
            let shown = in_one_line(&String::from_utf8_lossy(value), SHOWN_CHARS);
            format!("{name} must be a list of {wanted}: {name}[{index}] is {shown}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::params::Params;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn from_form(form: &str) -> Result<TargetsBuf, ApiError> {
        read_targets(&Params::parse(form.as_bytes()).unwrap(), &Limits::default())
    }

    fn from_json(body: &str) -> Result<TargetsBuf, ApiError> {
        read_targets(&json::members(body.as_bytes())?, &Limits::default())
    }

    fn names(list: &Option<NamesBuf>) -> Vec<&str> {
        let names = list.as_ref().unwrap().as_names();
        names.iter().map(|name| std::str::from_utf8(name).unwrap()).collect()
    }

    fn cids(list: &Option<CidsBuf>) -> Vec<u64> {
        list.as_ref().unwrap().as_cids().iter().map(|cid| cid.0).collect()
    }

    #[test]
    fn forms_have_comma_separated_lists() {
        let form =
            "uids=u%202,u1,u1&cids=7,18446744073709551615&tags=a&devices=ios,web&except_cids=9,9";
        let targets = from_form(form).unwrap();
        assert_eq!(names(&targets.uids), ["u 2", "u1"]);
        assert_eq!(cids(&targets.cids), [7, u64::MAX]);
        assert_eq!(names(&targets.tags), ["a"]);
        assert_eq!(names(&targets.devices), ["ios", "web"]);
        assert_eq!(cids(&targets.except_cids), [9]);
    }

    #[test]
    fn json_has_arrays_texts_and_integers() {
        let targets = from_json(
            r#"{"uids":[3,"u\u0031","u1",-4],"cids":["5",6,5],"tags":"b,a","except_cids":7,"x":1}"#,
        )
        .unwrap();
        assert_eq!(names(&targets.uids), ["-4", "3", "u1"]);
        assert_eq!(cids(&targets.cids), [5, 6]);
        assert_eq!(names(&targets.tags), ["a", "b"]);
        assert!(targets.devices.is_none());
        assert_eq!(cids(&targets.except_cids), [7]);
        assert_eq!(names(&from_json(r#"{"uids":12}"#).unwrap().uids), ["12"]);
    }

    #[test]
    fn given_but_empty_matches_nobody() {
        for targets in [from_form("uids=&cids"), from_json(r#"{"uids":[ ],"cids":""}"#)] {
            let targets = targets.unwrap();
            assert!(names(&targets.uids).is_empty() && cids(&targets.cids).is_empty());
            assert!(targets.tags.is_none() && targets.devices.is_none());
        }
    }

    #[test]
    fn malformed_selectors_are_named() {
        let bad = [
            ("uids", "null"),
            ("uids", "1.5"),
            ("uids", r#"[["a"]]"#),
            ("uids", r#"["a,b"]"#),
            ("uids", r#"[""]"#),
            ("uids", r#""a,""#),
            ("uids", r#"[null]"#),
            ("tags", "1"),
            ("tags", "[1]"),
            ("tags", r#""a\n""#),
            ("devices", r#""iOS""#),
            ("devices", "{}"),
            ("cids", "-1"),
            ("cids", r#"["+1"]"#),
            ("cids", "18446744073709551616"),
            ("except_cids", "true"),
        ];
        for (name, value) in bad {
            let error = from_json(&format!(r#"{{"{name}":{value}}}"#)).unwrap_err();
            assert_eq!(error.status, 400);
            assert!(error.msg.starts_with(name), "{value}: {}", error.msg);
        }
        for form in ["uids=a,,b", "cids=x", "cids=1,", "devices=A", "tags=%00", "uids=+,a"] {
            assert!(from_form(form).is_err(), "{form}");
        }
    }

    #[test]
    fn a_malformed_element_is_shown_with_its_index() {
        let msg = |body: &str| from_json(body).unwrap_err().msg.into_owned();
        for (body, start, end) in [
            (
                r#"{"uids":["a","b,c"]}"#,
                "uids must be a list, each element 1-128",
                r#"uids[1] is "b,c""#,
            ),
            (r#"{"uids":"a, ,b"}"#, "uids must be a list, each element 1-128", r#"uids[1] is """#),
            (r#"{"uids":[1,2.5]}"#, "uids must be a list of strings or integers", "uids[1] is 2.5"),
            (r#"{"uids":[{"a":1}]}"#, "uids must be a list of strings", r#"uids[0] is {"a":1}"#),
            (r#"{"tags":["x",7]}"#, "tags must be a list of strings: ", "tags[1] is 7"),
            (r#"{"tags":"x\n"}"#, "tags must be a list, each element 1-128", r#"tags[0] is "x\n""#),
            (r#"{"devices":["iOS"]}"#, "devices must be a list, each", r#"devices[0] is "iOS""#),
            (
                r#"{"cids":"7,x"}"#,
                "cids must be a list, each element a client",
                r#"cids[1] is "x""#,
            ),
            (r#"{"cids":-1}"#, "cids must be a list, each element a client", r#"cids[0] is "-1""#),
            (
                r#"{"except_cids":null}"#,
                "except_cids must be a comma-separated list or an a",
                "digits",
            ),
        ] {
            let msg = msg(body);
            assert!(msg.starts_with(start) && msg.ends_with(end), "{body}: {msg}");
        }
        assert!(msg(&format!(r#"{{"uids":["{}"]}}"#, "u".repeat(99_999))).len() < 200);
    }

    /// "7, 8" was rejected in a selector of client ids, and selected a non-existent user " b".
    #[test]
    fn blanks_around_the_elements_of_a_text_are_left_out() {
        let targets = from_form("cids=7,+8&uids=+a+,%09b+c&tags=+&devices=ios+").unwrap();
        assert_eq!(cids(&targets.cids), [7, 8]);
        assert_eq!(names(&targets.uids), ["a", "b c"]);
        assert!(names(&targets.tags).is_empty());
        assert_eq!(names(&targets.devices), ["ios"]);
        let targets = from_json(r#"{"cids":"7, 8","uids":[" a"]}"#).unwrap();
        assert_eq!(cids(&targets.cids), [7, 8]);
        assert_eq!(names(&targets.uids), [" a"]);
    }

    #[test]
    fn selectors_are_bounded() {
        let list = |count: usize| vec!["1"; count].join(",");
        assert_eq!(cids(&from_form(&format!("cids={}", list(1_000))).unwrap().cids), [1]);
        for body in
            [format!(r#"{{"uids":[{}]}}"#, list(1_001)), format!(r#"{{"uids":"{}"}}"#, list(1_001))]
        {
            let error = from_json(&body).unwrap_err();
            assert_eq!(error.msg, "uids: at most 1000 in one selector; split the request");
        }
    }

    #[test]
    fn what_the_limits_say_is_said_back() {
        let limits = Limits {
            selector_ids: 2,
            uid_bytes: 3,
            tag_bytes: 4,
            device_bytes: 5,
            ..Limits::default()
        };
        let read = |form: &str| {
            let params = Params::parse(form.as_bytes()).unwrap();
            read_targets(&params, &limits).map(drop).map_err(|error| error.msg)
        };
        assert_eq!(read("uids=uuu,u&tags=tttt&devices=ddddd,d&cids=1234567,8"), Ok(()));
        for (form, part) in [
            ("uids=uuuu", "uids must be a list, each element 1-3 bytes without"),
            ("tags=ttttt", "tags must be a list, each element 1-4 bytes without"),
            ("devices=dddddd", "each element 1-5 bytes of [a-z0-9_-]"),
            ("uids=a,b,c", "uids: at most 2 in one selector"),
            ("cids=1,2,3", "cids: at most 2 in one selector"),
            ("except_cids=1,2,3", "except_cids: at most 2 in one selector"),
        ] {
            let msg = read(form).unwrap_err();
            assert!(msg.contains(part), "{form}: {msg}");
        }
    }

    proptest! {
        #[test]
        fn a_body_cut_anywhere_never_panics(
            value in r#"[\[\]",a1\\u-]{0,20}"#, form in "\\PC{0,20}",
        ) {
            let body = format!(r#"{{"uids":{value},"cids":{value}}}"#);
            for cut in (0..=body.len()).filter(|&cut| body.is_char_boundary(cut)) {
                let _ = from_json(&body[..cut]);
            }
            if let Ok(params) = Params::parse(format!("uids={form}&cids={form}").as_bytes()) {
                let _ = read_targets(&params, &Limits::default());
            }
        }

        #[test]
        fn form_array_and_text_mean_the_same(list in vec("[a-z]{1,3}", 0..8)) {
            let text = list.join(",");
            let form = from_form(&format!("tags={text}")).unwrap();
            let array = from_json(&format!(r#"{{"tags":{list:?}}}"#)).unwrap();
            let joined = from_json(&format!(r#"{{"tags":"{text}"}}"#)).unwrap();
            prop_assert_eq!(form.as_targets(), array.as_targets());
            prop_assert_eq!(form.as_targets(), joined.as_targets());
        }
    }
}
