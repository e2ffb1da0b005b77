//! Which gateways run on this node, and where they listen.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::Node;
use super::lock;
use crate::catalog::GroupEntry;
use crate::gateway::ClientLimits;
use crate::gateway::Gateway;
use crate::gateway::GatewayOptions;
use crate::group::Group;
use crate::peer::Transport;
use crate::platform::Platform;
use crate::service::ListenerView;
use crate::types::GroupId;

/// What an operator may set of client listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSettings {
    /// Where this node listens for a group, by the group's name, instead of where the catalog says. An empty list:
    /// nowhere.
    pub addresses: BTreeMap<String, Vec<String>>,
    /// What this node's adapters are told as `listen` over what the catalog says, by the group's name: objects.
    pub params: BTreeMap<String, serde_json::Value>,
    /// Added to the ports that the catalog says, so that several nodes find room on one machine.
    pub port_offset: u16,
    /// Whether addresses other than loopback may be listened on.
    pub insecure: bool,
    /// Connections of one group's listeners.
    pub connections_max: usize,
    /// Of one client address.
    pub connections_per_address_max: usize,
    /// Bytes that wait for one client that does not read.
    pub queued_bytes_max: usize,
    /// How long a connection may be silent; `None`: for ever.
    pub idle: Option<Duration>,
    /// Whether adapters may have nodes come and go.
    pub adapters_change_nodes: bool,
    /// The groups whose adapters may have this node go on without the others.
    pub recovered_by: BTreeSet<String>,
}

impl Default for ListenSettings {
    fn default() -> Self {
        Self {
            addresses: BTreeMap::new(),
            params: BTreeMap::new(),
            port_offset: 0,
            insecure: false,
            connections_max: 10_000,
            connections_per_address_max: 10_000,
            queued_bytes_max: 64 << 20,
            idle: None,
            adapters_change_nodes: false,
            recovered_by: BTreeSet::new(),
        }
    }
}

/// One group's gateway on this node.
pub(super) struct Running<P: Platform, T: Transport> {
    gateway: Option<Gateway<P, T>>,
    /// Addresses that are not listened on, and why.
    refused: Vec<ListenerView>,
}

impl<P: Platform, T: Transport> Running<P, T> {
    pub(super) fn gateway(&self) -> Option<&Gateway<P, T>> {
        self.gateway.as_ref()
    }

    pub(super) fn listeners(&self) -> Vec<ListenerView> {
        let own = self.gateway.iter().flat_map(Gateway::listeners);
        let own = own.map(|status| ListenerView { address: status.address, state: status.state });
        own.chain(self.refused.iter().cloned()).collect()
    }

    pub(super) fn connections(&self) -> u64 {
        self.gateway.as_ref().map_or(0, Gateway::connections)
    }
}

/// `HOST:PORT` with `offset` added to the port.
pub fn with_offset(address: &str, offset: u16) -> Result<String, String> {
    let (host, port) =
        address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).ok_or("it is not HOST:PORT".to_owned())?;
    let port: u16 = port.parse().map_err(|_| format!("`{port}` is not a port"))?;
    // Port 0 lets the system choose.
    let port = if port == 0 { 0 } else { port.checked_add(offset).ok_or("the port is over 65535".to_owned())? };
    Ok(format!("{host}:{port}"))
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let ip = address.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| host.parse::<IpAddr>());
    host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
}

impl ListenSettings {
    /// Where this node listens for the group, and what it refuses to listen on.
    fn resolve(&self, group: &str, catalog: &[String]) -> (Vec<String>, Vec<ListenerView>) {
        let wanted: Vec<(String, Result<String, String>)> = match self.addresses.get(group) {
            Some(own) => own.iter().map(|address| (address.clone(), with_offset(address, 0))).collect(),
            None => catalog.iter().map(|address| (address.clone(), with_offset(address, self.port_offset))).collect(),
        };
        let (mut addresses, mut refused) = (Vec::new(), Vec::new());
        for (asked, address) in wanted {
            match address {
                Ok(address) if self.insecure || is_loopback(&address) => addresses.push(address),
                Ok(address) => refused.push(ListenerView {
                    address,
                    state:
                        "refused: it is reachable from other machines, and this node was not started with --insecure"
                            .to_owned(),
                }),
                Err(why) => refused.push(ListenerView { address: asked, state: format!("refused: {why}") }),
            }
        }
        (addresses, refused)
    }
}

impl<P: Platform, T: Transport> Node<P, T> {
    /// Starts the gateway of a group that was opened here, if it is to listen.
    pub(super) fn open_gateway(&self, name: &str, entry: &GroupEntry, group: &Arc<Group<P, T>>) {
        let setup = &self.0.setup;
        let settings = &setup.settings;
        let (addresses, mut refused) = settings.listen.resolve(name, &entry.listen);
        let mut gateway = None;
        if !addresses.is_empty() && !group.module().is_some_and(|module| module.info().has_adapter) {
            let state = format!("refused: module {} has no adapter", group.module_ref().name);
            refused.extend(addresses.into_iter().map(|address| ListenerView { address, state: state.clone() }));
        } else if !addresses.is_empty() {
            let json = |bytes: &[u8]| serde_json::from_slice(bytes).unwrap_or_else(|_| serde_json::json!({}));
            let (params, mut listen): (serde_json::Value, serde_json::Value) =
                (json(&entry.params), json(&entry.listen_params));
            if let (Some(own), Some(listen)) =
                (settings.listen.params.get(name).and_then(|own| own.as_object()), listen.as_object_mut())
            {
                listen.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            let told = serde_json::json!({ "params": params, "listen": listen, "node": self.id() });
            gateway = Some(Gateway::start(GatewayOptions {
                group: group.clone(),
                limits: entry.limits.clone(),
                addresses,
                settings: told.to_string().into_bytes(),
                clients: ClientLimits {
                    connections_max: settings.listen.connections_max,
                    connections_per_address_max: settings.listen.connections_per_address_max,
                    queued_bytes_max: settings.listen.queued_bytes_max,
                    idle: settings.listen.idle,
                    request_timeout: settings.request_timeout,
                    session_timeout_min_ms: settings.session_timeout_min_ms,
                    session_timeout_max_ms: settings.session_timeout_max_ms,
                    command_bytes_max: settings.command_bytes_max,
                },
                platform: setup.platform.clone(),
                log: setup.log.clone(),
                data_dir: setup.data_dir.clone(),
                changer: settings.listen.adapters_change_nodes.then(|| self.member_changer(entry.id)),
                recoverer: settings.listen.recovered_by.contains(name).then(|| self.recoverer()),
            }));
        }
        for refused in &refused {
            tracing::error!(group = name, address = refused.address, "not listening for clients: {}", refused.state);
        }
        if gateway.is_some() || !refused.is_empty() {
            lock(&self.0.gateways).insert(entry.id, Running { gateway, refused });
        }
    }

    pub(super) fn close_gateway(&self, group: GroupId) {
        // Dropping stops it.
        let gateway = lock(&self.0.gateways).remove(&group);
        drop(gateway);
    }

    pub(super) fn close_gateways(&self) {
        let gateways = std::mem::take(&mut *lock(&self.0.gateways));
        drop(gateways);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_node_listens_where_the_catalog_says_unless_it_is_told_otherwise() {
        let catalog = ["127.0.0.1:2181".to_owned()];
        let mut settings = ListenSettings { port_offset: 2, ..ListenSettings::default() };
        assert_eq!(settings.resolve("a", &catalog).0, ["127.0.0.1:2183"]);
        settings.addresses.insert("a".to_owned(), vec!["localhost:9000".to_owned()]);
        assert_eq!(settings.resolve("a", &catalog).0, ["localhost:9000"]);
        settings.addresses.insert("a".to_owned(), Vec::new());
        assert_eq!(settings.resolve("a", &catalog), (Vec::new(), Vec::new()));
    }

    #[test]
    fn an_address_that_others_reach_needs_the_operators_word() {
        let catalog = ["0.0.0.0:2181".to_owned(), "[::1]:2181".to_owned(), "127.0.0.1:65535".to_owned()];
        let mut settings = ListenSettings { port_offset: 1, ..ListenSettings::default() };
        let (addresses, refused) = settings.resolve("a", &catalog);
        assert_eq!(addresses, ["[::1]:2182"]);
        assert!(refused[0].state.contains("--insecure") && refused[1].state.contains("over 65535"), "{refused:?}");
        settings.insecure = true;
        assert_eq!(settings.resolve("a", &catalog).0, ["0.0.0.0:2182", "[::1]:2182"]);
    }
}
