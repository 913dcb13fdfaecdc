//! The birth of threads, and why it failed.

use super::sys;
use std::io;
use std::thread;

/// Why a thread could not begin its work.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the thread {name} cannot be started ({error})")]
    Spawn { name: String, error: io::Error },
    /// The kernel did not give it a table of file descriptors of its own.
    #[error("unshare(CLONE_FILES) is refused ({0})")]
    Unshare(io::Error),
}

impl From<StartError> for io::Error {
    fn from(error: StartError) -> Self {
        Self::other(error)
    }
}

impl StartError {
    /// The one inside an error, if that is what it is.
    pub fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref().and_then(|inner| inner.downcast_ref())
    }
}

/// Starts a thread that nobody waits for.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StartError> {
    let builder = thread::Builder::new().name(name.into());
    let failed = |error| StartError::Spawn { name: name.into(), error };
    builder.spawn(body).map(drop).map_err(failed)
}

/// Gives the calling thread a file-descriptor table of its own.
pub fn unshare_files() -> Result<(), StartError> {
    sys::unshare_files().map_err(StartError::Unshare)
}
