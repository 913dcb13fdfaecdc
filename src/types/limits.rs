//! The limits of the wire contract, with their defaults.

/// Upper bounds on what a peer may send. All are inclusive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a client's complete WebSocket message (default 64 KiB); beyond: close 1009.
    pub message_bytes: usize,
    /// Bytes of an HTTP body (default 1 MiB); beyond: 413.
    pub body_bytes: usize,
    /// Bytes of a request's head, request line included (default 8 KiB); beyond: 431.
    pub head_bytes: usize,
    /// Header fields of a request (default 100); beyond: 431.
    pub head_fields: usize,
    /// Tags of one connection (default 256).
    pub tags: usize,
    /// Ids in one selector of a push (default 1,000).
    pub selector_ids: usize,
    /// Messages in one `/ws/push/batch` (default 1,000).
    pub batch_messages: usize,
    /// Bytes of a project's id (default 64).
    pub pid_bytes: usize,
    /// Bytes of a user's id (default 128).
    pub uid_bytes: usize,
    /// Bytes of a tag (default 128).
    pub tag_bytes: usize,
    /// Bytes of a device (default 32).
    pub device_bytes: usize,
}

impl Limits {
    /// Returns the maximum length of a JSON array of all tags of one connection: each in quotes,
    /// with a comma, and every byte may need a backslash.
    pub fn tag_list_bytes(&self) -> usize {
        self.tags * (2 * self.tag_bytes + 3)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 64 << 10,
            body_bytes: 1 << 20,
            head_bytes: 8 << 10,
            head_fields: 100,
            tags: 256,
            selector_ids: 1_000,
            batch_messages: 1_000,
            pid_bytes: 64,
            uid_bytes: 128,
            tag_bytes: 128,
            device_bytes: 32,
        }
    }
}
