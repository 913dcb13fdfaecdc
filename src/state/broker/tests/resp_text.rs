//! Decodes and encodes the traffic of a link to Redis.

/// Returns the commands that a broker wrote.
pub fn commands(mut bytes: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let count = number(&mut bytes, b'*');
        let mut command = Vec::new();
        for _ in 0..count {
            let length = number(&mut bytes, b'$');
            command.push(bytes[..length].to_vec());
            bytes = &bytes[length + 2..];
        }
        found.push(command);
    }
    found
}

fn number(bytes: &mut &[u8], kind: u8) -> usize {
    assert_eq!(bytes[0], kind);
    let end = bytes.windows(2).position(|two| two == b"\r\n").unwrap();
    let number = std::str::from_utf8(&bytes[1..end]).unwrap().parse().unwrap();
    *bytes = &bytes[end + 2..];
    number
}

pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Encodes a message on a channel.
pub fn message(out: &mut Vec<u8>, channel: &[u8], payload: &[u8]) {
    out.extend_from_slice(b">3\r\n$7\r\nmessage\r\n");
    bulk(out, channel);
    bulk(out, payload);
}
