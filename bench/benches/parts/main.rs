//! The parts that every message passes through, each beside its lower bound: the same bytes copied,
//! hashed or searched, the same keys looked up, the same ring without our accounting. `make
//! criterion` runs it and prints the table of docs/measured.md.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod envelopes;
mod frames;
mod hop;
mod matching;
mod signatures;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures a part of the server and its bound, one after the other.
fn pair<A, B>(
    criterion: &mut Criterion,
    part: &str,
    work: Throughput,
    mut ours: impl FnMut() -> A,
    bound: (&str, impl FnMut() -> B),
) {
    let (bound_name, mut bound) = bound;
    let mut group = criterion.benchmark_group(part);
    group.throughput(work);
    group.bench_function("server", |bencher| bencher.iter(&mut ours));
    group.bench_function(BenchmarkId::new("bound", bound_name), |bencher| bencher.iter(&mut bound));
    group.finish();
}

/// Copies `bytes` to the end of an empty buffer that has room.
fn copy(buffer: &mut Vec<u8>, bytes: &[u8]) -> usize {
    buffer.clear();
    buffer.extend_from_slice(black_box(bytes));
    black_box(buffer.as_slice()).len()
}

/// Returns `bytes` letters.
fn text(bytes: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(bytes).collect()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    frames::measure(&mut criterion);
    signatures::measure(&mut criterion);
    envelopes::measure(&mut criterion);
    matching::measure(&mut criterion);
    hop::measure(&mut criterion);
    criterion.final_summary();
}
