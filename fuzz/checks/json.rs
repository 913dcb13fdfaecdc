//! The scanner accepts nothing but JSON, and agrees with serde_json on the values.

use serde_json::Value;
use ws_cluster::wire::json;

pub fn run(text: &[u8]) {
    let is_valid = json::validate(text).is_ok();
    if let Ok(value) = serde_json::from_slice::<Value>(text) {
        // What serde_json accepts is JSON; ours may refuse it only for its depth.
        assert!(is_valid || json::validate(text) == Err(json::JsonError::Depth));
        if let (Ok(string), Value::String(expected)) = (json::string(text.trim_ascii()), &value) {
            assert_eq!(string, expected.as_str());
        }
    }
    if let Ok(members) = json::members(text) {
        assert!(is_valid);
        for member in members.iter() {
            assert!(json::validate(member.value).is_ok());
        }
    }
    if is_valid && let Ok(elements) = json::elements(text) {
        for element in elements {
            assert!(json::validate(element.expect("valid JSON has valid elements")).is_ok());
        }
    }
    if let Ok(text) = std::str::from_utf8(text) {
        let mut quoted = Vec::new();
        json::write_string(&mut quoted, text);
        assert_eq!(serde_json::from_slice::<String>(&quoted).expect("JSON"), text);
        assert_eq!(json::string(&quoted).expect("our own string"), text);
    }
}
