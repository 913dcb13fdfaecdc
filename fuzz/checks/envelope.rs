//! Whatever decodes also encodes to the same meaning.

use ws_cluster::wire::envelope::Envelope;

pub fn run(bytes: &[u8]) {
    let Ok(envelope) = Envelope::decode(bytes) else { return };
    let mut encoded = Vec::new();
    envelope.encode(&mut encoded);
    assert_eq!(Envelope::decode(&encoded), Ok(envelope));
    let names = [envelope.targets.uids, envelope.targets.tags, envelope.targets.devices];
    for list in names.iter().flatten() {
        assert!(list.iter().all(|name| !name.is_empty()));
        assert_eq!(list.is_empty(), list.iter().next().is_none());
    }
}
