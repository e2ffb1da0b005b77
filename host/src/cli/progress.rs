//! How far long work is: a bar when a person looks at standard error, a line now and then otherwise.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use super::client;
use super::output;

/// Between two lines.
const LINE_PAUSE: Duration = Duration::from_secs(5);

/// The progress of one piece of work that is counted in bytes.
pub(super) struct Progress(Arc<Inner>);

struct Inner {
    name: String,
    bar: ProgressBar,
    watched: bool,
    told: Mutex<Instant>,
}

impl Progress {
    /// Work of this name; nothing is shown before [`Self::begin`].
    pub(super) fn new(name: &str) -> Self {
        let watched = std::io::stderr().is_terminal();
        let inner =
            Inner { name: name.to_owned(), bar: ProgressBar::hidden(), watched, told: Mutex::new(Instant::now()) };
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}")
        {
            inner.bar.set_style(style);
        }
        inner.bar.set_prefix(inner.name.clone());
        Self(Arc::new(inner))
    }

    /// It will take so many bytes.
    pub(super) fn begin(&self, bytes: u64) {
        self.0.bar.set_length(bytes);
        if self.0.watched {
            self.0.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        }
    }

    /// So many more are done.
    pub(super) fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }

    /// Counts for a request's body; `after` is said when all is sent.
    pub(super) fn counter(&self, after: &'static str) -> client::Progress {
        let inner = self.0.clone();
        Arc::new(move |bytes| {
            inner.advance(bytes);
            if bytes == 0 || Some(inner.bar.position()) >= inner.bar.length() {
                inner.bar.set_message(after);
            }
        })
    }

    /// It is done: the bar goes.
    pub(super) fn finish(&self) {
        self.0.bar.finish_and_clear();
    }
}

impl Inner {
    fn advance(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.watched {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= LINE_PAUSE {
            *told = Instant::now();
            let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
            output::note(format!("{}: {} of {}", self.name, output::size(position), output::size(length)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Also when the work failed.
        self.finish();
    }
}
