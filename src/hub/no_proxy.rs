//! `NO_PROXY`: the hosts that are reached without a proxy.

use std::net::IpAddr;

/// Hosts that are reached without a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    /// The host, whose subdomains count as well, or a network of addresses; None for all hosts.
    host: Option<String>,
    /// The only port that it is for.
    port: Option<u16>,
}

impl NoProxy {
    /// Reads a list such as `localhost, .example.org, 10.0.0.1:8080, 10.0.0.0/8, [::1], *`.
    pub fn parse(text: &str) -> Self {
        let entries = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
        Self(entries.map(Exception::parse).collect())
    }

    /// Whether a host, at a port, is one of them.
    pub fn covers(&self, host: &str, port: Option<u16>) -> bool {
        let host = host.trim_matches(['[', ']']).trim_end_matches('.').to_lowercase();
        self.0.iter().any(|exception| exception.covers(&host, port))
    }
}

impl Exception {
    fn parse(entry: &str) -> Self {
        let bracketed = entry.strip_prefix('[').and_then(|entry| entry.split_once(']'));
        let (host, port) = match (bracketed, entry.split_once(':')) {
            (Some((host, rest)), _) => (host, rest.strip_prefix(':')),
            // More than one colon is an IPv6 address.
            (None, Some((host, port))) if !port.contains(':') => (host, Some(port)),
            _ => (entry, None),
        };
        let name = host.strip_prefix("*.").unwrap_or(host).trim_matches('.').to_lowercase();
        Self { host: Some(name).filter(|name| name != "*"), port: port.and_then(|port| port.parse().ok()) }
    }

    fn covers(&self, host: &str, port: Option<u16>) -> bool {
        let is_within = |own: &String| {
            let before = host.strip_suffix(own.as_str());
            before.is_some_and(|before| before.is_empty() || before.ends_with('.')) || is_in_network(host, own)
        };
        self.host.as_ref().is_none_or(is_within) && (self.port.is_none() || self.port == port)
    }
}

/// Whether a host is an address in a network, such as `10.0.0.0/8`.
fn is_in_network(host: &str, network: &str) -> bool {
    let Some((network, bits)) = network.split_once('/') else { return false };
    let (Ok(host), Ok(network), Ok(bits)) = (host.parse(), network.parse(), bits.parse::<u32>()) else { return false };
    let (differing, length) = match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => (u128::from(u32::from(host) ^ u32::from(network)), 32),
        (IpAddr::V6(host), IpAddr::V6(network)) => (u128::from(host) ^ u128::from(network), 128),
        _ => return false,
    };
    bits <= length && differing.checked_shr(length - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_covered_with_their_subdomains() {
        let covers = |list: &str, host: &str| NoProxy::parse(list).covers(host, Some(443));
        for list in ["hub.example.org", "example.org", ".example.org", "*.example.org", "a, Example.org", "*", "x *"] {
            assert!(covers(list, "Hub.example.org"), "{list}");
        }
        for list in ["", "hub", "ample.org", "other.hub.example.org", "example.com", "localhost,,"] {
            assert!(!covers(list, "hub.example.org"), "{list}");
        }
        assert!(covers(".example.org", "example.org") && covers("::1", "[::1]") && covers("[::1]:443", "[::1]"));
        assert!(!covers("::1", "[::11]"));
    }

    #[test]
    fn addresses_are_covered_by_their_network() {
        let covers = |list: &str, host: &str| NoProxy::parse(list).covers(host, Some(443));
        assert!(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0"].iter().all(|list| covers(list, "10.1.2.3")));
        for list in ["10.1.2.0/24", "10.1.2.2/32", "10.0.0.0/33", "10.0.0.0/", "::/0", "example.org/8"] {
            assert!(!covers(list, "10.1.3.3"), "{list}");
        }
        assert!(covers("fd00::/8, a", "[fd12::1]") && covers("::/0", "::1") && !covers("fd00::/8", "[fe80::1]"));
        assert!(!covers("10.0.0.0/8", "10.example.org"));
    }

    #[test]
    fn a_port_restricts_an_entry() {
        let covers = |list: &str, port| NoProxy::parse(list).covers("127.0.0.1", Some(port));
        assert!(covers("127.0.0.1:8080", 8080) && covers("127.0.0.1", 8080) && covers("*:8080", 8080));
        assert!(!covers("127.0.0.1:8080", 8081));
    }
}
