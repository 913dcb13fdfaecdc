//! A client's bytes have the same meaning wherever they are split.

use std::ops::ControlFlow;
use ws_cluster::wire::websocket::{Inbound, Message, Rest, Violation};

const MAX_BYTES: usize = 300;

fn read<'b>(pieces: impl Iterator<Item = &'b [u8]>) -> (Vec<String>, Option<Violation>) {
    let (mut kept, mut seen) = (None, Vec::new());
    for piece in pieces {
        let mut is_over = false;
        let result = Inbound::read(&mut kept, &mut piece.to_vec(), MAX_BYTES, &mut |message| {
            match &message {
                Message::Text(text) => {
                    assert!(text.len() <= MAX_BYTES && std::str::from_utf8(text).is_ok());
                }
                Message::Binary(bytes) => assert!(bytes.len() <= MAX_BYTES),
                Message::Ping(bytes) | Message::Pong(bytes) => assert!(bytes.len() <= 125),
                Message::Close(code) => assert!((1000..5000).contains(code)),
            }
            seen.push(format!("{message:?}"));
            is_over = matches!(message, Message::Close(_));
            if is_over { ControlFlow::Break(Rest::Dropped) } else { ControlFlow::Continue(()) }
        });
        if is_over || result.is_err() {
            return (seen, result.err());
        }
    }
    (seen, None)
}

/// The first byte is the number of following bytes that are lengths of the pieces.
pub fn run(input: &[u8]) {
    let [count, rest @ ..] = input else { return };
    let (cuts, bytes) = rest.split_at(usize::from(*count).min(rest.len()));
    let whole = read([bytes].into_iter());
    assert_eq!(whole, read(bytes.chunks(1)));
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    let pieces = std::iter::from_fn(|| {
        let step = cuts.next().map_or(1, |cut| usize::from(*cut)).min(rest.len());
        let (piece, tail) = rest.split_at(step.max(1).min(rest.len()));
        rest = tail;
        (!piece.is_empty()).then_some(piece)
    });
    assert_eq!(whole, read(pieces));
}
