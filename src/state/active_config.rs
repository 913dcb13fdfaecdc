//! The configuration in force: what a reload replaces as a whole, while the node runs.

use super::projects::Projects;
use super::settings::Settings;
use std::sync::Arc;

/// One state of the configuration. Each thread takes it as a whole at one moment between two of its
/// tasks, so that nothing is judged by parts of two of them.
#[derive(Debug, Clone)]
pub struct ActiveConfig {
    /// Counts the reloads that changed it; 1 at the start.
    pub generation: u64,
    pub settings: Arc<Settings>,
    pub projects: Arc<Projects>,
}
