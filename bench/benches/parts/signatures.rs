//! The signature of a push, and the parsing of the rest of its request.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use sha2::{Digest, Sha256};
use ws_cluster::wire::sign::{self, Secret};

use crate::{pair, text};

pub fn measure(criterion: &mut Criterion) {
    let secrets = [Secret::new(b"a secret of a project")];
    for bytes in [64, 200, 4 << 10] {
        let body = text(bytes);
        let parts: [&[u8]; 2] = [b"/ws/push\n", &body];
        let signature = sign::sign_hex(&secrets[0], &parts);
        let signed = parts.concat();
        pair(
            criterion,
            &format!("verify the signature of {bytes} bytes"),
            Throughput::Bytes(bytes as u64),
            || sign::verify(&secrets, black_box(&parts), &signature),
            ("SHA-256", || Sha256::digest(black_box(&signed))),
        );
    }
}
