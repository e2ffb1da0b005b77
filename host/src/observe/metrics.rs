//! The metrics page. [`Page`] turns numbers that live elsewhere (counters of the log, of groups) into
//! its text at the moment it is asked for; [`HttpMetrics`] holds what the HTTP server itself counts.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::encoding::MetricEncoder;
use prometheus_client::encoding::text;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

const END: &str = "# EOF\n";

/// Joins pages into one: each may or may not have the end mark, the result has one.
pub fn join_pages(pages: &[String]) -> String {
    let mut joined: String = pages.iter().map(|page| page.strip_suffix(END).unwrap_or(page)).collect();
    joined.push_str(END);
    joined
}

type Labels = Vec<(String, String)>;

#[derive(Debug)]
enum Value {
    Counter(u64),
    Gauge(f64),
    Histogram(Box<Histogram>),
}

impl Value {
    fn encode(&self, metric: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Counter(value) => ConstCounter::new(*value).encode(metric),
            Self::Gauge(value) => ConstGauge::new(*value).encode(metric),
            Self::Histogram(value) => value.encode(metric),
        }
    }
}

/// Label values may be anything; the encoder writes them as they are.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[derive(Debug)]
struct Family {
    help: &'static str,
    values: Vec<(Labels, Value)>,
}

/// A metrics page in the making. Values of one name belong together in the text however they are added.
///
/// Names are whole (`statehouse_log_bytes`); a counter's name gets `_total` by itself.
#[derive(Debug, Default)]
pub struct Page {
    families: BTreeMap<&'static str, Family>,
}

impl Page {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number that only grows.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: u64,
    ) -> &mut Self {
        self.add(name, help, labels, Value::Counter(value))
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.add(name, help, labels, Value::Gauge(value))
    }

    /// A distribution (a clone of a histogram shares its numbers).
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&str, &str)],
        value: &Histogram,
    ) -> &mut Self {
        self.add(name, help, labels, Value::Histogram(Box::new(value.clone())))
    }

    fn add(&mut self, name: &'static str, help: &'static str, labels: &[(&str, &str)], value: Value) -> &mut Self {
        let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), escape(value))).collect();
        self.families.entry(name).or_insert_with(|| Family { help, values: Vec::new() }).values.push((labels, value));
        self
    }

    /// The page's text, without the end mark: see [`join_pages`].
    pub fn text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut page = String::new();
        // Writing to a String does not fail.
        if text::encode_registry(&mut page, &registry).is_err() {
            page.clear();
        }
        page
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, family) in &self.families {
            let kind = match family.values.first() {
                Some((_, Value::Counter(_))) => MetricType::Counter,
                Some((_, Value::Histogram(_))) => MetricType::Histogram,
                _ => MetricType::Gauge,
            };
            let mut metric = encoder.encode_descriptor(name, family.help, None, kind)?;
            if let [(labels, value)] = family.values.as_slice()
                && labels.is_empty()
            {
                value.encode(metric)?;
                continue;
            }
            for (labels, value) in &family.values {
                value.encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

macro_rules! request_classes {
    ($($name:ident = $text:literal,)*) => {
        /// What a request asks for, coarsely: the label of the HTTP metrics. Names of groups are not
        /// labels here, so strangers cannot make the page grow.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum RequestClass { $(#[doc = $text] $name,)* }
        impl RequestClass {
            const ALL: &[(RequestClass, &str)] = &[$((RequestClass::$name, $text),)*];
        }
    };
}
request_classes! {
    Apply = "apply",
    Query = "query",
    Events = "events",
    Sessions = "sessions",
    Groups = "groups",
    Modules = "modules",
    Other = "other",
}

impl RequestClass {
    /// The class of a path.
    pub fn of(path: &str) -> Self {
        let Some(rest) = path.strip_prefix("/v1/groups") else {
            return if path.starts_with("/v1/modules") { Self::Modules } else { Self::Other };
        };
        match rest.trim_start_matches('/').split('/').nth(1) {
            Some("apply") => Self::Apply,
            Some("query") => Self::Query,
            Some("events") => Self::Events,
            Some("sessions") => Self::Sessions,
            _ => Self::Groups,
        }
    }
}

const STATUS_CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const SECONDS: [f64; 14] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

#[derive(Debug)]
struct PerClass {
    class: RequestClass,
    label: &'static str,
    answered: [AtomicU64; STATUS_CLASSES.len()],
    duration: Histogram,
}

/// What the HTTP server counts.
#[derive(Debug)]
pub struct HttpMetrics {
    classes: Vec<PerClass>,
    connections: AtomicI64,
    in_flight: AtomicI64,
}

/// Counts one thing for as long as it lives.
#[derive(Debug)]
pub struct Counted<'a>(&'a AtomicI64);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicI64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl HttpMetrics {
    /// All at zero.
    pub fn new() -> Self {
        let per_class = |&(class, label): &(RequestClass, &'static str)| PerClass {
            class,
            label,
            answered: Default::default(),
            duration: Histogram::new(SECONDS),
        };
        Self {
            classes: RequestClass::ALL.iter().map(per_class).collect(),
            connections: AtomicI64::new(0),
            in_flight: AtomicI64::new(0),
        }
    }

    /// A connection was opened; it is closed when the result is dropped.
    pub fn connection(&self) -> Counted<'_> {
        Counted::new(&self.connections)
    }

    /// A request began; it is over when the result is dropped, answered or not.
    pub fn in_flight(&self) -> Counted<'_> {
        Counted::new(&self.in_flight)
    }

    /// A request was answered (an event stream: opened).
    pub fn answered(&self, class: RequestClass, status: u16, took: Duration) {
        let Some(per_class) = self.classes.iter().find(|per_class| per_class.class == class) else { return };
        if let Some(count) = per_class.answered.get(usize::from(status / 100).saturating_sub(1)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        per_class.duration.observe(took.as_secs_f64());
    }

    /// Their part of the metrics page.
    pub fn page(&self) -> String {
        let mut page = Page::new();
        page.gauge(
            "statehouse_http_connections",
            "Open HTTP connections",
            &[],
            self.connections.load(Ordering::Relaxed) as f64,
        );
        page.gauge(
            "statehouse_http_requests_in_flight",
            "HTTP requests being answered",
            &[],
            self.in_flight.load(Ordering::Relaxed) as f64,
        );
        for per_class in &self.classes {
            for (status, count) in STATUS_CLASSES.iter().zip(&per_class.answered) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    page.counter(
                        "statehouse_http_requests",
                        "HTTP requests answered",
                        &[("kind", per_class.label), ("status", status)],
                        count,
                    );
                }
            }
            page.histogram(
                "statehouse_http_request_duration_seconds",
                "Time to the answer's head",
                &[("kind", per_class.label)],
                &per_class.duration,
            );
        }
        page.text()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::*;

    #[test]
    fn values_of_one_name_stand_together_and_labels_are_escaped() {
        let mut page = Page::new();
        page.counter("statehouse_x", "An x.", &[("group", "a\"b")], 3).gauge("statehouse_y", "A y", &[], 1.5).counter(
            "statehouse_x",
            "An x.",
            &[("group", "c")],
            4,
        );
        let expected = "# HELP statehouse_x An x.\n# TYPE statehouse_x counter\nstatehouse_x_total{group=\"a\\\"b\"} 3\nstatehouse_x_total{group=\"c\"} 4\n\
                        # HELP statehouse_y A y\n# TYPE statehouse_y gauge\nstatehouse_y 1.5\n";
        assert_eq!(page.text(), expected);
        assert_eq!(join_pages(&["a 1\n# EOF\n".into(), "b 2\n".into()]), "a 1\nb 2\n# EOF\n");
    }

    #[test]
    fn requests_are_counted_by_kind_and_status_but_never_by_name() {
        let metrics = HttpMetrics::new();
        let _open = metrics.connection();
        metrics.answered(RequestClass::of("/v1/groups/secret/apply"), 200, Duration::from_micros(300));
        metrics.answered(RequestClass::of("/v1/groups/secret/sessions/7/touch"), 404, Duration::ZERO);
        let page = metrics.page();
        assert!(page.contains("statehouse_http_requests_total{kind=\"apply\",status=\"2xx\"} 1\n"), "{page}");
        assert!(page.contains("statehouse_http_requests_total{kind=\"sessions\",status=\"4xx\"} 1\n"));
        assert!(page.contains("statehouse_http_request_duration_seconds_bucket{le=\"0.0005\",kind=\"apply\"} 1\n"));
        assert!(page.contains("statehouse_http_connections 1.0\n"));
        assert!(!page.contains("secret"));
    }

    #[test]
    fn every_path_has_its_class() {
        for (path, class) in [
            ("/v1/groups", RequestClass::Groups),
            ("/v1/groups/apply", RequestClass::Groups),
            ("/v1/groups/a/query", RequestClass::Query),
            ("/v1/groups/a/events", RequestClass::Events),
            ("/v1/modules/a", RequestClass::Modules),
            ("/metrics", RequestClass::Other),
        ] {
            assert_eq!(RequestClass::of(path), class, "{path}");
        }
    }
}
