//! The sites of the ops ports.

/// What answers on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    Metrics,
    Pprof,
    /// The live page, Swagger UI, and the descriptions of the APIs.
    Pages,
}

impl Site {
    /// The flag that chooses its port.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Metrics => "--prometheus_port",
            Self::Pprof => "--pprof_port",
            Self::Pages => "--swagger_port",
        }
    }
}
