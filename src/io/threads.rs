//! Starting threads, and the reasons why it fails.

use super::sys;
use std::io;
use std::thread;

/// Why a thread could not begin its work.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the thread {name} cannot be started ({error})")]
    Spawn { name: String, error: io::Error },
    /// The kernel refused the thread its own file-descriptor table.
    #[error("unshare(CLONE_FILES) is refused ({0})")]
    Unshare(io::Error),
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        Self::other(error)
    }
}

impl StartError {
    /// Returns the `StartError` inside an error, if it holds one.
    pub fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }
}

/// Starts a thread that is not joined.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    let builder = thread::Builder::new().name(name.into());
    let failed = |error| StartError::Spawn { name: name.into(), error };
    builder.spawn(body).map(drop).map_err(failed)
}

/// Gives the calling thread its own file-descriptor table.
pub fn unshare_files() -> Result<(), StartError> {
    sys::unshare_files().map_err(StartError::Unshare)
}
