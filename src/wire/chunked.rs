//! The chunked transfer coding (RFC 9112, section 7.1), decoded incrementally.

use super::http::{HttpError, TOO_LARGE};

/// Sixteen hexadecimal digits fill a u64 and cannot overflow it.
const MAX_SIZE_DIGITS: u8 = 16;
/// Maximum bytes of all chunk extensions of one body together, and of its trailers.
const MAX_EXTENSION_BYTES: usize = 8 << 10;
const MAX_TRAILER_BYTES: usize = 8 << 10;

/// Decodes one body. Feed the received bytes, split anywhere, to [`Chunked::decode`] until it
/// reports completion. Extensions and trailers are skipped. After an error the connection must be
/// closed.
#[derive(Debug)]
pub struct Chunked {
    state: ChunkState,
    total: u64,
    extension_bytes: usize,
    trailer_bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Size { digits: u8, size: u64 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
    Done,
}

const FIRST: ChunkState = ChunkState::Size { digits: 0, size: 0 };

impl Default for Chunked {
    fn default() -> Self {
        Self { state: FIRST, total: 0, extension_bytes: 0, trailer_bytes: 0 }
    }
}

impl Chunked {
    /// Appends the data in `input` to `out`; returns the number of bytes used and whether the body
    /// is complete. Until it is, all of `input` is used.
    ///
    /// Fails with 413 as soon as a chunk's size takes the body over `max` bytes, with 400 if
    /// malformed.
    pub fn decode(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        max: usize,
    ) -> Result<(usize, bool), HttpError> {
        let mut at = 0;
        while at < input.len() && self.state != ChunkState::Done {
            if let ChunkState::Data { left } = self.state {
                let piece = &input[at..];
                let take = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
                out.extend_from_slice(&piece[..take]);
                at += take;
                let left = left - take as u64;
                self.state = if left == 0 { ChunkState::DataCr } else { ChunkState::Data { left } };
            } else {
                self.state = self.step(input[at], max)?;
                at += 1;
            }
        }
        Ok((at, self.state == ChunkState::Done))
    }

    /// Handles one byte that is not data.
    fn step(&mut self, byte: u8, max: usize) -> Result<ChunkState, HttpError> {
        match (self.state, byte) {
            (ChunkState::Size { digits, size }, b'\r' | b';') if digits > 0 => {
                self.total = self.total.saturating_add(size);
                if self.total > max as u64 {
                    return Err(TOO_LARGE);
                }
                Ok(if byte == b';' {
                    ChunkState::Extension { size }
                } else {
                    ChunkState::SizeLf { size }
                })
            }
            (ChunkState::Size { digits, size }, _) => {
                let digit = char::from(byte).to_digit(16);
                let Some(digit) = digit.filter(|_| digits < MAX_SIZE_DIGITS) else {
                    return Err(HttpError::bad("the chunk size is malformed"));
                };
                Ok(ChunkState::Size { digits: digits + 1, size: size << 4 | u64::from(digit) })
            }
            (ChunkState::Extension { size }, b'\r') => Ok(ChunkState::SizeLf { size }),
            (state @ ChunkState::Extension { .. }, _) if is_text(byte) => {
                self.extension_bytes += 1;
                if self.extension_bytes > MAX_EXTENSION_BYTES {
                    return Err(HttpError::bad("the chunk extensions are too long"));
                }
                Ok(state)
            }
            (ChunkState::SizeLf { size: 0 }, b'\n') => Ok(ChunkState::TrailerStart),
            (ChunkState::SizeLf { size }, b'\n') => Ok(ChunkState::Data { left: size }),
            (ChunkState::DataCr, b'\r') => Ok(ChunkState::DataLf),
            (ChunkState::DataLf, b'\n') => Ok(FIRST),
            (ChunkState::TrailerStart, b'\r') => Ok(ChunkState::EndLf),
            (ChunkState::TrailerStart | ChunkState::Trailer, _) if is_text(byte) => {
                self.trailer_bytes += 1;
                if self.trailer_bytes > MAX_TRAILER_BYTES {
                    return Err(HttpError::bad("the trailers are too long"));
                }
                Ok(ChunkState::Trailer)
            }
            (ChunkState::Trailer, b'\r') => Ok(ChunkState::TrailerLf),
            (ChunkState::TrailerLf, b'\n') => Ok(ChunkState::TrailerStart),
            (ChunkState::EndLf, b'\n') => Ok(ChunkState::Done),
            _ => Err(HttpError::bad("the chunked body is malformed")),
        }
    }
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Returns the data, the number of bytes used and whether it was complete, for any split of the
    /// input.
    fn decode(pieces: &[&[u8]], max: usize) -> Result<(Vec<u8>, usize, bool), u16> {
        let mut chunked = Chunked::default();
        let mut out = Vec::new();
        let (mut used, mut done) = (0, false);
        for piece in pieces {
            let step = chunked.decode(piece, &mut out, max).map_err(|error| error.status)?;
            used += step.0;
            done = step.1;
        }
        Ok((out, used, done))
    }

    fn whole(input: &str) -> Result<(String, usize, bool), u16> {
        let (out, used, done) = decode(&[input.as_bytes()], 100)?;
        Ok((String::from_utf8(out).unwrap(), used, done))
    }

    #[test]
    fn chunks_are_joined_and_the_rest_is_left() {
        let input = "5\r\nhello\r\n00A;name=\"v\"\r\n, world.\r\n\r\n0\r\nDigest: x\r\n\r\nGET /";
        assert_eq!(whole(input), Ok(("hello, world.\r\n".into(), input.len() - 5, true)));
        assert_eq!(whole("0\r\n\r\n"), Ok((String::new(), 5, true)));
        assert_eq!(whole("3\r\nab"), Ok(("ab".into(), 5, false)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        let bad = [
            "\r\n",
            ";x\r\n",
            "+5\r\n",
            "0x5\r\n",
            " 5\r\n",
            "5 \r\n",
            "-1\r\n",
            "g\r\n",
            "5\n",
            "5\rx",
            "1\r\nab",
            "1\r\na\n",
            "1\r\na\rb",
            "0\r\n\n",
            "0\r\nA: b\n",
            "0\r\n\rx",
            "5;a\nb\r\n",
            "5;\0\r\n",
            "00000000000000005\r\n",
            "0\r\nA: b\rc",
        ];
        for input in bad {
            assert_eq!(whole(input), Err(400), "{input:?}");
        }
    }

    #[test]
    fn everything_is_bounded() {
        assert_eq!(whole("64\r\n").unwrap().1, 4);
        assert_eq!(whole("65\r\n"), Err(413));
        assert_eq!(whole("ffffffffffffffff\r\n"), Err(413));
        assert_eq!(whole("1\r\na\r\nffffffffffffffff\r\n"), Err(413));
        assert_eq!(whole(&format!("1;{}", "x".repeat(8_193))), Err(400));
        assert_eq!(whole(&format!("0\r\n{}", "x".repeat(8_193))), Err(400));
        assert_eq!(whole(&format!("0\r\n{}", "x".repeat(8_192))).unwrap().1, 8_195);
    }

    proptest! {
        #[test]
        fn a_body_cut_anywhere_is_the_same_body(
            chunks in vec(vec(any::<u8>(), 1..20), 0..6),
        ) {
            let mut input = Vec::new();
            for chunk in &chunks {
                input.extend_from_slice(format!("{:x};e\r\n", chunk.len()).as_bytes());
                input.extend_from_slice(chunk);
                input.extend_from_slice(b"\r\n");
            }
            input.extend_from_slice(b"0\r\nT: v\r\n\r\n");
            let expected = Ok((chunks.concat(), input.len(), true));
            for cut in 0..=input.len() {
                let (first, second) = input.split_at(cut);
                prop_assert_eq!(decode(&[first, second], 1_000), expected.clone());
            }
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            prop_assert_eq!(decode(&bytes, 1_000), expected);
        }

        #[test]
        fn any_bytes_cut_anywhere_give_the_same(
            input in "[0-9a-f;\r\nx]{0,40}", cut in 0usize..40,
        ) {
            let input = input.as_bytes();
            let (first, second) = input.split_at(cut.min(input.len()));
            prop_assert_eq!(decode(&[first, second], 50), decode(&[input], 50));
        }
    }
}
