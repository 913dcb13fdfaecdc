//! `/debug/pprof/heap`: memory figures from the allocator, the kernel and the node itself. Call it
//! on a separate thread: the kernel walks all of the process's pages.

use crate::io::allocator;
use crate::io::shared::Shared;
use crate::state::counters::Counter;
use std::fmt::Write as _;
use std::fs;

/// Returns all of it as text.
pub fn report(shared: &Shared) -> String {
    let mut out = String::new();
    allocator_part(&mut out);
    node_part(&mut out, shared);
    out.push_str("\n# /proc/self/smaps_rollup\n\n");
    match fs::read_to_string("/proc/self/smaps_rollup") {
        Ok(text) => out.push_str(&text),
        Err(error) => line(&mut out, format_args!("unreadable: {error}")),
    }
    out.push_str("\n# mimalloc, its own statistics\n\n");
    out.push_str(&allocator::statistics());
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn allocator_part(out: &mut String) {
    let process = allocator::process();
    out.push_str("# The process\n\n");
    for (name, bytes) in [
        ("resident_bytes_peak", process.resident_bytes_peak),
        ("committed_bytes", process.committed_bytes),
        ("committed_bytes_peak", process.committed_bytes_peak),
    ] {
        line(out, format_args!("{name} {bytes}"));
    }
}

fn node_part(out: &mut String, shared: &Shared) {
    let sum = |counter: fn(&crate::state::counters::Counters) -> &Counter| -> u64 {
        shared.counters.iter().map(|counters| counter(counters).value()).sum()
    };
    out.push_str("\n# What the node holds\n\n");
    line(out, format_args!("ws_connection {}", sum(|worker| &worker.connections)));
    line(out, format_args!("outbox_bytes {}", sum(|worker| &worker.outbox_bytes)));
    line(out, format_args!("idempotency_key {}", sum(|worker| &worker.remembered_keys)));
    let pending = shared.broker_counters.pending_bytes.value();
    line(out, format_args!("queue_pending_bytes {pending}"));
}
