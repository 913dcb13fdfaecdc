//! Redis's bytes have the same meaning however they are split, and nothing is reported of an
//! incomplete reply.

use ws_cluster::wire::resp::{self, Reply};

/// The first byte is the maximum length of a string.
pub fn run(input: &[u8]) {
    let [max_bytes, bytes @ ..] = input else { return };
    let max_bytes = usize::from(*max_bytes);
    let mut rest = bytes;
    loop {
        let whole = resp::read(rest, max_bytes);
        let end = if let Ok(Some((_, taken))) = whole { taken } else { rest.len() };
        assert!(end <= rest.len());
        for cut in 0..end {
            let early = resp::read(&rest[..cut], max_bytes);
            assert!(early == Ok(None) || whole.is_err() && early == whole);
        }
        let Ok(Some((reply, taken))) = whole else { return };
        assert!(taken != 0);
        assert_eq!(resp::read(&rest[..taken], max_bytes), whole);
        check(reply, max_bytes);
        rest = &rest[taken..];
    }
}

/// No string exceeds the limit, and a message survives being written again.
fn check(reply: Reply<'_>, max_bytes: usize) {
    match reply {
        Reply::Message { channel, payload } => {
            assert!(channel.len() <= max_bytes && payload.len() <= max_bytes);
            let mut again = Vec::new();
            resp::write_command(&mut again, &[b"message", channel, payload]);
            let length = again.len();
            assert_eq!(resp::read(&again, max_bytes.max(7)), Ok(Some((reply, length))));
        }
        Reply::Subscribed { channel } | Reply::Unsubscribed { channel: Some(channel) } => {
            assert!(channel.len() <= max_bytes);
        }
        _ => {}
    }
}
