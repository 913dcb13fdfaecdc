//! Parcels, members' announcements, bundles and a business server's messages: whatever decodes
//! encodes to the same meaning, and lists end.

use ws_cluster::wire::bundle;
use ws_cluster::wire::member::Member;
use ws_cluster::wire::parcel::{MAX_CANCELLED, Parcel, Sender, addressee, pid};
use ws_cluster::wire::server_message::{self, ServerMessage};

pub fn run(bytes: &[u8]) {
    assert!(bundle::envelopes(bytes).count() <= bytes.len() / 4 + 1);
    for envelope in bundle::envelopes(bytes).map_while(Result::ok) {
        check_parcel(envelope);
        check_member(envelope);
    }
    if let Ok(ServerMessage::Response { data, .. }) = server_message::parse(bytes) {
        assert!(serde_json::from_slice::<serde_json::Value>(data).is_ok() || data.len() > 100);
    }
}

fn check_parcel(bytes: &[u8]) {
    let Ok(parcel) = Parcel::decode(bytes) else { return };
    let sender = Sender { node: Default::default(), epoch: 1 };
    let mut again = Vec::new();
    match &parcel {
        Parcel::Request(request) => {
            request.encode(sender, &mut again);
            assert_eq!(addressee(&again), Ok(request.server));
            assert_eq!(pid(&again), Ok(request.pid.as_bytes()));
        }
        Parcel::Response(response) => {
            response.encode(sender, &mut again);
            assert_eq!(addressee(&again), Ok(response.client));
        }
        Parcel::Events(events) => {
            events.encode(&mut again);
            assert!(events.list.count() <= bytes.len() / 5 + 1);
        }
        Parcel::Cancel(cancel) => {
            cancel.encode(sender, &mut again);
            assert_eq!(addressee(&again), Ok(cancel.server));
            assert!(cancel.list.ids().count() <= MAX_CANCELLED);
        }
    }
    assert_eq!(Parcel::decode(&again), Ok(parcel));
}

fn check_member(bytes: &[u8]) {
    let Ok(member) = Member::decode(bytes) else { return };
    let mut again = Vec::new();
    member.encode(&mut again);
    assert_eq!(Member::decode(&again), Ok(member));
    assert!(member.here.count() + member.gone.count() <= bytes.len() / 8);
}
