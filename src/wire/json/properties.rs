//! Property tests of the JSON reader against serde_json.

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde::de::IgnoredAny;
use serde_json::Value;

use super::*;

/// The reference: it has no limit on depth or numbers, and does not check surrogates when it
/// ignores values.
fn is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Fragments of JSON, separated by the character `~`, in any order.
fn fragments() -> impl Strategy<Value = String> {
    const PIECES: &str = "{~}~[~]~,~:~\"~\\~\\u~\\ud83d~\\n~true~null~-~0~12~.~e~E+~ ~\n~\t~é~\
        \u{1}~\
                          \"a\"~\"b\":~[1,2]~{\"a\":1}";
    let pieces: Vec<&str> = PIECES.split('~').collect();
    prop::collection::vec(select(pieces), 0..12).prop_map(|list| list.concat())
}

proptest! {
    #[test]
    fn agrees_with_serde_on_fragments(text in fragments()) {
        prop_assert_eq!(validate(text.as_bytes()).is_ok(), is_json(text.as_bytes()));
    }

    #[test]
    fn agrees_with_serde_on_mutations(
        value in value(), is_pretty: bool, at: Index, byte in prop_oneof![
            any::<u8>(), select(&b"{}[],:\"\\ u0e.-\n"[..])
        ],
    ) {
        let mut text = serde_json::to_vec(&value).unwrap();
        if is_pretty {
            text = serde_json::to_vec_pretty(&value).unwrap();
        }
        prop_assert_eq!(validate(&text), Ok(()));
        let at = at.index(text.len());
        text[at] = byte;
        prop_assert_eq!(validate(&text).is_ok(), is_json(&text));
        let _ = members(&text);
    }

    #[test]
    fn members_are_what_was_written(
        list in prop::collection::btree_map(any::<String>(), value(), 0..24),
        blanks in select(&["", " ", "\r\n\t "][..]),
    ) {
        let written: Vec<(&str, String)> =
            list.iter().map(|(name, value)| (name.as_str(), value.to_string())).collect();
        let joined: Vec<String> = written
            .iter()
            .map(|(name, value)| {
                let name = Value::from(*name);
                format!("{blanks}{name}{blanks}:{blanks}{value}{blanks}")
            })
            .collect();
        let text = format!("{blanks}{{{blanks}{}}}{blanks}", joined.join(","));
        let object = members(text.as_bytes()).unwrap();
        let expected: Vec<(&str, &str)> =
            written.iter().map(|(name, value)| (*name, value.as_str())).collect();
        prop_assert_eq!(pairs(&object), expected);

        let values: Vec<&str> = written.iter().map(|(_, value)| value.as_str()).collect();
        let array = format!("[{blanks}{}]", values.join(&format!("{blanks},{blanks}")));
        let walked: Result<Vec<&[u8]>, JsonError> = elements(array.as_bytes()).unwrap().collect();
        let bytes: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        prop_assert_eq!(walked, Ok(bytes));
    }

    #[test]
    fn a_cut_text_is_an_error(value in value()) {
        let text = format!("{{\"a\":{value}}}");
        for end in 0..text.len() {
            prop_assert!(validate(&text.as_bytes()[..end]).is_err());
            prop_assert!(members(&text.as_bytes()[..end]).is_err());
            let _ = elements(&text.as_bytes()[end..]).map(|walk| walk.count());
            let _ = string(&text.as_bytes()[end..]);
        }
    }

    #[test]
    fn strings_agree_with_serde(
        body in "(\\\\u(d[89a-f])?[0-9a-f]{2}|\\\\[nt\"/x]|[a-zé😀\"]){0,9}"
    ) {
        let text = format!("\"{body}\"");
        if validate(text.as_bytes()).is_ok() {
            let reference = serde_json::from_str::<String>(&text).ok();
            prop_assert_eq!(string(text.as_bytes()).ok().map(Cow::into_owned), reference);
        }
        let _ = string(text.as_bytes());
    }

    #[test]
    fn written_strings_agree_with_serde(text in "[\\x00-\\x7fé😀]{0,40}") {
        let mut out = Vec::new();
        write_string(&mut out, &text);
        prop_assert_eq!(&out, &serde_json::to_vec(&text).unwrap());
        prop_assert_eq!(string(&out).unwrap(), text);
    }
}

fn pairs<'a>(members: &'a Members<'_>) -> Vec<(&'a str, &'a str)> {
    members.iter().map(|m| (m.name.as_ref(), std::str::from_utf8(m.value).unwrap())).collect()
}
