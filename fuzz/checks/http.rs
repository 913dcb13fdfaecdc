//! A request head becomes complete at the same byte wherever it is split; so does a chunked body.

use ws_cluster::types::Limits;
use ws_cluster::wire::chunked::Chunked;
use ws_cluster::wire::http::parse_head;
use ws_cluster::wire::upgrade;

/// The first byte is the number of following bytes that are lengths of the pieces.
pub fn run(input: &[u8]) {
    let [count, rest @ ..] = input else { return };
    let (cuts, bytes) = rest.split_at(usize::from(*count).min(rest.len()));
    let limits = Limits { head_bytes: 512, head_fields: 8, ..Limits::default() };
    if let Ok(Some(head)) = parse_head(bytes, &limits) {
        assert!(head.head_len <= bytes.len().min(limits.head_bytes));
        for end in 0..head.head_len {
            assert!(matches!(parse_head(&bytes[..end], &limits), Ok(None)), "cut at {end}");
        }
        let _ = upgrade::upgrade(&head);
        let _ = head.content_is("application/json");
    }

    const MAX_BODY_BYTES: usize = 4_096;
    let mut body = Vec::new();
    let whole = Chunked::default().decode(bytes, &mut body, MAX_BODY_BYTES);
    assert!(body.len() <= MAX_BODY_BYTES);
    let (mut decoder, mut pieces, mut at) = (Chunked::default(), Vec::new(), 0);
    let mut cuts = cuts.iter().cycle();
    let by_pieces = loop {
        let step = cuts.next().map_or(1, |cut| usize::from(*cut) % 16 + 1);
        let end = (at + step).min(bytes.len());
        match decoder.decode(&bytes[at..end], &mut pieces, MAX_BODY_BYTES) {
            Ok((used, is_done)) if is_done || end == bytes.len() => break Ok((at + used, is_done)),
            Ok((used, _)) => assert_eq!(used, end - at),
            Err(error) => break Err(error),
        }
        at = end;
    };
    assert_eq!(whole.is_ok(), by_pieces.is_ok());
    if let (Ok(whole), Ok(by_pieces)) = (whole, by_pieces) {
        assert_eq!((whole, body), (by_pieces, pieces));
    }
}
