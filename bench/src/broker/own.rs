//! The cost of a push through Redis for the broker of its own node: published, answered, and back.

use std::io::{self, Error};
use std::time::{Duration, Instant};

use ws_cluster::state::broker::{LinkName, Pusher};
use ws_cluster::types::{MonotonicMs, Routing};

use super::load::{self, Load, PROJECTS};
use super::{Args, Way, median};
use crate::sys;

const WAY: Way = Way { name: "own", workers: 1, has_rings: false, is_for_all: false };
/// Messages published before the first of them is answered.
const TOGETHER: usize = 192;
const NOW: MonotonicMs = MonotonicMs::new(1_000);

/// Plays Redis for one broker with one worker on its thread. Only the broker's own time counts.
pub fn run(args: &Args) -> io::Result<String> {
    if let Some(core) = args.core {
        sys::pin_to_core(core)?;
    }
    let mut ns = Vec::new();
    for _ in 0..args.rounds {
        ns.push(round(args)?);
    }
    let middle = median(&mut ns);
    Ok(format!("a push of this node: {middle:.0} ns ({:.0} to {:.0})", ns[0], ns[ns.len() - 1]))
}

/// Returns the nanoseconds per message.
fn round(args: &Args) -> io::Result<f64> {
    let load = Load::new("wsc", args.bytes, false);
    let origin = load::node(1)?;
    let (mut broker, mut workers, _) = load::broker(&load, &WAY)?;
    load::make_ready(&mut broker, &mut *workers)?;
    let mut out = Vec::new();
    let mut spent = Duration::ZERO;
    let mut pushed = 0;
    while pushed < args.messages {
        out.clear();
        let start = Instant::now();
        workers.with_sink(&mut |sink| {
            for ticket in 0..TOGETHER {
                // All of one project, as in a burst.
                load.with_message((pushed + ticket) * PROJECTS, origin, |envelope| {
                    let pusher = Pusher { worker: 0, ticket: ticket as u32 };
                    broker.handle_push(envelope, Routing::Project, pusher, NOW, sink);
                });
            }
            broker.take_outgoing(LinkName::Publish, &mut out, usize::MAX);
        });
        spent += start.elapsed();
        pushed += TOGETHER;
        let [answers, messages] = load::answers(&out)?;
        let mut result = Ok(());
        let start = Instant::now();
        workers.with_sink(&mut |sink| {
            let answered = broker.handle_bytes(LinkName::Publish, &answers, NOW, sink);
            let heard = broker.handle_bytes(LinkName::Subscribe, &messages, NOW, sink);
            result = answered.and(heard).map(drop);
        });
        spent += start.elapsed();
        result.map_err(Error::other)?;
    }
    if workers.delivered() != pushed as u64 {
        return Err(Error::other(format!("{} of {pushed} came back", workers.delivered())));
    }
    Ok(spent.as_nanos() as f64 / pushed as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_comes_back() {
        let args = Args { messages: 1_000, rounds: 2, ..Args::default() };
        assert!(run(&args).unwrap().starts_with("a push of this node: "));
    }
}
