//! `--report`: the run as one self-contained HTML page.

use serde_json::Value;

const PAGE: &str = include_str!("page/page.html");
const SCRIPT: &str = include_str!("page/page.js");

/// Renders a report and its samples. Both are embedded as JSON for programs to read: the elements
/// with the ids `report` and `series`.
pub fn render(report: &Value, series: &Value) -> String {
    let mut page = String::with_capacity(PAGE.len() + SCRIPT.len() + 64_000);
    let mut rest = PAGE;
    for (name, text) in [
        ("{{REPORT}}", embedded(report)),
        ("{{SERIES}}", embedded(series)),
        ("{{SCRIPT}}", SCRIPT.trim_end().to_owned()),
    ] {
        let (before, after) = rest.split_once(name).unwrap_or((rest, ""));
        page.push_str(before);
        page.push_str(&text);
        rest = after;
    }
    page.push_str(rest);
    page
}

/// Returns JSON in which no `<` can end the surrounding element.
fn embedded(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Returns the contents of the element with this id.
    fn element<'a>(page: &'a str, id: &str) -> &'a str {
        let (_, rest) = page.split_once(&format!("id=\"{id}\">")).unwrap();
        rest.split_once("</script>").unwrap().0
    }

    #[test]
    fn the_page_carries_what_the_report_says_and_loads_nothing() {
        let report = json!({"command": "fanout", "ok": true, "why": "</script><b>{{SERIES}}"});
        let series = json!({"at_s": [0, 1]});
        let page = render(&report, &series);
        let read = |id| serde_json::from_str::<Value>(element(&page, id)).unwrap();
        assert_eq!(read("report"), report);
        assert_eq!(read("series"), series);
        assert!(!page.contains("{{SCRIPT}}") && page.trim_end().ends_with("</html>"));
        let urls = page.match_indices("http").filter(|(at, _)| page[*at..].contains("://"));
        let urls = urls.map(|(at, _)| page[at..].split(['"', ' ']).next().unwrap());
        let urls: Vec<_> = urls.filter(|url| url.contains("://")).collect();
        assert_eq!(urls, ["http://www.w3.org/2000/svg"], "nothing is loaded");
        for what in ["src=", "@import", "url(", "fetch("] {
            assert!(!page.contains(what), "{what}");
        }
    }
}
