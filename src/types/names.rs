//! Names given by peers or operators: how an error shows one, and which known name was probably
//! meant.

/// Characters of a given text shown in an error; the rest is cut.
const SHOWN_CHARS: usize = 40;
/// Longer names are not compared with known ones.
const COMPARED_BYTES: usize = 40;
/// Shorter prefixes are shared by unrelated names.
const MIN_BEGINNING_BYTES: usize = 3;

/// Returns `text` in double quotes, for an error; see [`in_one_line`].
pub fn quoted(text: &str) -> String {
    format!("\"{}\"", in_one_line(text, SHOWN_CHARS))
}

/// Returns `text` as one line of at most `max_chars` characters and an ellipsis; backslashes and
/// invisible characters are escaped.
pub fn in_one_line(text: &str, max_chars: usize) -> String {
    let mut line = String::new();
    let mut chars = text.chars();
    for shown in chars.by_ref().take(max_chars) {
        match shown {
            '"' | '\'' => line.push(shown),
            _ => line.extend(shown.escape_debug()),
        }
    }
    if chars.next().is_some() {
        line.push('…');
    }
    line
}

/// Returns the error message for an unknown name: `unknown member "uid"; did you mean "uids"?`.
///
/// If none of the `known` names is similar it lists them, the nearest first.
pub fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let (shown, mut known) = (quoted(name), known.to_vec());
    // A stable sort keeps the order of equally distant names.
    known.sort_by_cached_key(|one| distance(name, one));
    match known.first() {
        Some(nearest) if is_similar(name, nearest) => {
            format!("unknown {what} {shown}; did you mean \"{nearest}\"?")
        }
        Some(_) => format!("unknown {what} {shown}; known are \"{}\"", known.join("\", \"")),
        None => format!("unknown {what} {shown}"),
    }
}

/// Returns the known name that was most likely meant; `None` if none is similar.
pub fn similar<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let nearest = known.iter().min_by_key(|one| distance(name, one))?;
    is_similar(name, nearest).then_some(nearest)
}

/// Returns the number of characters to insert, remove, replace or swap, ignoring case. A prefix of
/// a name (`ttl` of `ttl_ms`) counts as nearer than its length suggests.
fn distance(name: &str, known: &str) -> usize {
    if name.len() > COMPARED_BYTES {
        return usize::MAX;
    }
    let (name, known) = (name.to_lowercase(), known.to_lowercase());
    let changes = strsim::osa_distance(&name, &known);
    let is_beginning = name.len().min(known.len()) >= MIN_BEGINNING_BYTES
        && (known.starts_with(&name) || name.starts_with(&known));
    if is_beginning { changes.min(1 + changes / 4) } else { changes }
}

/// Whether at most half of the characters differ.
fn is_similar(name: &str, known: &str) -> bool {
    distance(name, known) <= name.chars().count().max(known.len()) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KNOWN: [&str; 7] = ["uids", "cids", "tags", "except_cids", "data", "exp", "ttl_ms"];

    #[test]
    fn the_nearest_name_is_named() {
        for (name, nearest) in [
            ("uid", "uids"),
            ("uids[]", "uids"),
            ("Uids", "uids"),
            ("udis", "uids"),
            ("cid", "cids"),
            ("tag", "tags"),
            ("except_uids", "except_cids"),
            ("dat", "data"),
            ("DATA", "data"),
            ("userIds", "uids"),
            // Three letters away from "exp", five from the other one.
            ("except", "except_cids"),
            ("ttl", "ttl_ms"),
        ] {
            let expected = format!("unknown member \"{name}\"; did you mean \"{nearest}\"?");
            assert_eq!(unknown("member", name, &KNOWN), expected);
        }
        let listed = r#""uids", "cids", "tags", "data", "exp", "ttl_ms", "except_cids""#;
        let expected = format!("unknown member \"user\"; known are {listed}");
        assert_eq!(unknown("member", "user", &KNOWN), expected);
        assert_eq!(unknown("key", "x", &[]), "unknown key \"x\"");
    }

    #[test]
    fn what_is_shown_is_short_and_in_one_line() {
        assert_eq!(quoted("é\"\n\\\u{202e}"), r#""é"\n\\\u{202e}""#);
        assert_eq!(quoted(&"é".repeat(40)), format!("\"{}\"", "é".repeat(40)));
        assert_eq!(quoted(&"é".repeat(41)), format!("\"{}…\"", "é".repeat(40)));
        let long = unknown("member", &"uids".repeat(1 << 18), &KNOWN);
        assert!(long.len() < 200 && long.contains("known are \"uids\""), "{long}");
    }

    proptest! {
        #[test]
        fn any_name_makes_a_short_sentence(name in "\\PC{0,60}|[\\x00-\\x7f]{0,60}") {
            let sentence = unknown("member", &name, &KNOWN);
            prop_assert!(sentence.len() < 500 && !sentence.contains(char::is_control));
        }
    }
}
