//! What an operator sees: the process's own log (`logs.rs`) and the pieces of the metrics page (`metrics.rs`).

mod logs;
mod metrics;

pub use self::logs::init_logs;
pub use self::metrics::HttpMetrics;
pub use self::metrics::Page;
pub use self::metrics::RequestClass;
pub use self::metrics::join_pages;
