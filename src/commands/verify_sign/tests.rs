use super::*;
use crate::commands::sign;

const SECRET: &str = "0123456789abcdef";

fn hmac(secret: &[u8], text: &str) -> String {
    sign_hex(&Secret::new(secret), &[text.as_bytes()])
}

fn verify(args: &[&str]) -> (String, u8) {
    let args: Vec<String> = args.iter().map(|arg| (*arg).into()).collect();
    let env = Environment { get: &|_| None, all: &[] };
    let output = run(&Arguments::parse(&args).unwrap(), env).unwrap();
    (output.text, output.code)
}

/// Checks the verdict on a URL whose parameters are these.
fn url(params: &str, sign: &str) -> String {
    let url = format!("ws://h:8812/ws/connect?{params}&sign={sign}");
    let (text, code) = verify(&["verify-sign", "--secret", SECRET, &url]);
    assert_eq!(code, u8::from(text != "valid\n"), "{text}");
    text
}

const PARAMS: &str = "uid=u+1&pid=1&tags=a,b*&type=1";
const TEXT: &str = "pid=1&tags=a%2Cb%2A&type=1&uid=u%201";

#[test]
fn what_is_signed_is_valid() {
    assert_eq!(url(PARAMS, &hmac(SECRET.as_bytes(), &format!("/ws/connect\n{TEXT}"))), "valid\n");
    let vector = "fc693ec296eeb192fb6458696cdcdbabb265af8ab51ac61badcd7a8bb45ffae9";
    let vector = format!("ws://h/ws/connect?uid=u%201&type=1&pid=1&sign={vector}");
    assert_eq!(verify(&["verify-sign", &vector]), ("valid\n".into(), 0));
    for args in [
        &["sign", "--exp=9m", "/ws/connect?pid=1&uid=é b,c&x"][..],
        &["sign", "--exp=9m", "--form", "/ws/push", "pid=1&data=%7B%22a%22%3A1%7D"],
    ] {
        let args: Vec<String> = args.iter().map(|arg| (*arg).into()).collect();
        let env = Environment { get: &|_| None, all: &[] };
        let signed = sign::run(&Arguments::parse(&args).unwrap(), env).unwrap().text;
        let mut again: Vec<&str> = vec!["verify-sign"];
        again.extend(&args[2..args.len() - 1].iter().map(|arg| &**arg).collect::<Vec<_>>());
        again.push(signed.trim_end());
        assert_eq!(verify(&again), ("valid\n".into(), 0), "{signed}");
    }
}

#[test]
fn each_mistake_in_the_text_is_named() {
    for (text, named) in [
        (format!("/ws/connect\n{}", TEXT.replace("%20", "+")), "a space is written as +"),
        (format!("/ws/connect\n{}", TEXT.replace("%2C", ",")), "commas are not encoded"),
        ("/ws/connect\nuid=u%201&pid=1&tags=a%2Cb%2A&type=1".into(), "are not sorted by name"),
        (format!("/ws/connect\n{PARAMS}"), "the encoding of the URL is kept"),
        (
            format!("/ws/connect\n{}", TEXT.replace("%2C", "%2c").replace("%2A", "%2a")),
            "lower-case",
        ),
        (format!("/ws/connect\n{}", TEXT.replace("%2A", "*")), "as by encodeURIComponent"),
        ("/ws/connect\npid=1&tags=a,b*&type=1&uid=u 1".into(), "values are not percent-encoded"),
        (TEXT.into(), "the path and the newline after it are missing"),
        (format!("\n{TEXT}"), "the path is missing before the newline"),
        (format!("/ws/push\n{TEXT}"), "signed for the path /ws/push, but sent to /ws/connect"),
        (format!("ws://h:8812/ws/connect\n{TEXT}"), "the whole URL is signed"),
        (format!("/ws/connect{TEXT}"), "nothing between path and parameters"),
        (format!("/ws/connect?{TEXT}"), "separated by ?"),
        (format!("/ws/connect\\n{TEXT}"), "a backslash and an n"),
        (format!("/ws/connect\n{TEXT}\n"), "the text ends with a newline"),
        ("/ws/connect\npid=1&tags=a%2Cb%2A&uid=u%201".into(), "the parameter type is not signed"),
        (
            format!("/ws/connect\n{}", TEXT.replace("&tags", "&sign=&tags")),
            "an empty parameter sign",
        ),
        (format!("/ws/connect\n{}", TEXT.replace('%', "%25")), "encoded twice"),
    ] {
        let shown = url(PARAMS, &hmac(SECRET.as_bytes(), &text));
        assert!(shown.starts_with("not valid: text: ") && shown.contains(named), "{text}: {shown}");
        assert!(shown.contains("text to sign: /ws/connect\\npid=1&tags=a%2Cb%2A&"), "{shown}");
        assert_eq!(shown.lines().count(), 3, "one mistake, the text and the sign: {shown}");
    }
    let two = hmac(SECRET.as_bytes(), &format!("/ws/push\n{TEXT}\n"));
    let shown = url(PARAMS, &two);
    assert!(
        shown.contains("for the path /ws/push") && shown.contains("ends with a newl"),
        "{shown}"
    );
}

#[test]
fn each_mistake_in_the_key_is_named() {
    let text = format!("/ws/connect\n{TEXT}");
    for (key, named) in [
        (&b"0123456789abcdef\n"[..], "the key ends with a newline"),
        (b"0123456789abcdef ", "the key ends with a space"),
        (b"\"0123456789abcdef\"", "the key is in quotes"),
        (&[0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef], "decoded from hex"),
        (&STANDARD.decode(SECRET).unwrap(), "decoded from base64"),
        (b"dev-secret", "signed with another secret of the project"),
        (b"", "the key is empty"),
    ] {
        let shown = url(PARAMS, &hmac(key, &text));
        assert!(shown.starts_with("not valid: key: ") && shown.contains(named), "{shown}");
    }
    let shown = url(PARAMS, &hmac(b"hunter2", &text));
    assert!(shown.contains("neither this text with this key nor a usual mistake"), "{shown}");
}

#[test]
fn each_mistake_in_the_encoding_is_named() {
    let sign = hmac(SECRET.as_bytes(), &format!("/ws/connect\n{TEXT}"));
    let bytes: Vec<u8> =
        (0..64).step_by(2).map(|at| u8::from_str_radix(&sign[at..at + 2], 16).unwrap()).collect();
    let swapped =
        sign_hex(&Secret::new(format!("/ws/connect\n{TEXT}").as_bytes()), &[SECRET.as_bytes()]);
    for (sign, named) in [
        (sign.to_uppercase(), "upper-case"),
        (STANDARD.encode(&bytes), "is base64: use"),
        (URL_SAFE_NO_PAD.encode(&bytes), "is base64: use"),
        (STANDARD.encode(&sign), "base64 of the hex"),
        (format!("sha256={sign}"), "prefix"),
        (format!("{sign}%0A"), "white space"),
        (sign[..63].to_owned(), "63 hex digits"),
        (sign[..40].to_owned(), "SHA-1"),
        (format!("{sign}{sign}"), "SHA-512"),
        ("x".repeat(64), "is not hex"),
        (String::new(), "sign is missing"),
        (swapped, "swapped"),
    ] {
        let shown = url(PARAMS, &sign);
        assert!(shown.starts_with("not valid: encoding: ") && shown.contains(named), "{shown}");
    }
}

#[test]
fn a_json_body_is_compared_byte_for_byte() {
    let body = "{\"pid\": \"1\", \"data\": \"a/b \"}";
    let secret = SECRET.as_bytes();
    let verify_body = |body: &str, sign: &str| {
        let args = ["--secret", SECRET, "--sign", sign, "--json-body", "/ws/push", body];
        verify(&[&["verify-sign"], &args[..]].concat())
    };
    let of = |text: &str| hmac(secret, text);
    let sign = of(&format!("/ws/push\n{body}"));
    for header in [sign.clone(), format!("X-Sign: {sign}"), format!("x-sign:{sign}")] {
        assert_eq!(verify_body(body, &header), ("valid\n".into(), 0));
    }
    for (text, named) in [
        ("/ws/push\n{\"pid\":\"1\",\"data\":\"a/b \"}", "had no blanks"),
        ("/ws/push\n{\"pid\": \"1\", \"data\": \"a\\/b \"}", "slashes are escaped"),
        ("/ws/push\ndata=a%2Fb%20&pid=1", "signed as a query"),
        ("{\"pid\": \"1\", \"data\": \"a/b \"}", "the path and the newline"),
    ] {
        let (shown, code) = verify_body(body, &of(text));
        assert!(shown.contains(named) && code == 1, "{shown}");
    }
    let compact = "{\"pid\":\"1\",\"data\":[1,2]}";
    let python = of("/ws/push\n{\"pid\": \"1\", \"data\": [1, 2]}");
    assert!(verify_body(compact, &python).0.contains("a blank behind each comma"));
    let newline = of(&format!("/ws/push\n{compact}"));
    assert!(verify_body(&format!("{compact}\n"), &newline).0.contains("white space at its end"));
    let inside = format!("{{\"pid\":\"1\",\"sign\":\"{newline}\"}}");
    let args = ["verify-sign", "--secret", SECRET, "--json-body", "/ws/push", &inside];
    assert!(verify(&args).0.contains("belongs in the header X-Sign"));
}

#[test]
fn exp_is_checked_as_the_node_does() {
    let now = WallMs::from_s(1_700_000_000);
    let what = |text: &str| exp(Some(text), false, now).map(|found| found.what);
    assert_eq!((exp(None, false, now), what("1700000000"), what("1699999995")), (None, None, None));
    assert!(exp(None, true, now).unwrap().what.starts_with("exp is missing: --env prod"));
    let past = what("1699999994").unwrap();
    assert!(past.contains("(2023-11-14T22:13:14") && past.contains("passed 6 s ago"), "{past}");
    let ms = what("1700000000000").unwrap();
    assert!(ms.contains("is in milliseconds: use seconds, 1700000000"), "{ms}");
    assert!(what("soon").unwrap().contains("not a time in unix seconds"));
    let text = "/ws/connect\nexp=1&pid=1";
    let shown = url("pid=1&exp=1", &hmac(SECRET.as_bytes(), text));
    assert!(shown.starts_with("not valid: exp: exp 1 (1970-01-01T") && !shown.contains("text"));
}

#[test]
fn json_names_the_step() {
    let url = format!("/ws/connect?pid=1&sign={}", hmac(b"dev-secret\n", "/ws/connect\npid=1"));
    let (text, code) = verify(&["verify-sign", "--json", &url]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((json["valid"].as_bool(), code), (Some(false), 1));
    assert_eq!(json["differences"][0]["step"], "key");
    assert_eq!(json["text"], "/ws/connect\\npid=1");
}
