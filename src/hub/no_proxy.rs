//! `NO_PROXY`: the hosts that are reached without a proxy.

/// Hosts that are reached without a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoProxy(Vec<Exception>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    /// The host, whose subdomains count as well; None for all hosts.
    host: Option<String>,
    /// The only port that it is for.
    port: Option<u16>,
}

impl NoProxy {
    /// Reads a list such as `localhost, .example.org, 10.0.0.1:8080, [::1], *`.
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
            host.strip_suffix(own.as_str()).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        self.host.as_ref().is_none_or(is_within) && (self.port.is_none() || self.port == port)
    }
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
    fn a_port_restricts_an_entry() {
        let covers = |list: &str, port| NoProxy::parse(list).covers("127.0.0.1", Some(port));
        assert!(covers("127.0.0.1:8080", 8080) && covers("127.0.0.1", 8080) && covers("*:8080", 8080));
        assert!(!covers("127.0.0.1:8080", 8081));
    }
}
