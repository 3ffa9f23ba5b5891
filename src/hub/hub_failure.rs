//! Why a request to the Hub failed, and what to do about it.

use super::hub_environment::HubEnvironment;
use super::repository::Repository;
use std::fmt;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubFailure {
    /// HTTP 401 or 403.
    NoAccess {
        /// The status.
        status: u16,
        /// Whether a token was sent.
        token: bool,
        /// The page of the repository, where terms are accepted.
        page: String,
    },
    /// HTTP 404 for a repository.
    NoRepository(String),
    /// HTTP 404 for a revision of a repository.
    NoRevision(String),
    /// HTTP 404 for a file of a repository.
    NoFile {
        /// Its path in the repository.
        file: String,
        /// The repository.
        repository: String,
    },
    /// HTTP 429.
    RateLimit {
        /// How long to wait, in words.
        wait: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// Any other status.
    Status(u16, String),
    /// `HF_ENDPOINT` is no address.
    NoAddress(String),
    /// No connection.
    NoNetwork {
        /// The address.
        endpoint: String,
        /// The reason.
        reason: String,
    },
    /// A download ended early, for this reason.
    Truncated(String),
    /// `HF_HUB_OFFLINE` is set.
    Offline,
}

impl HubFailure {
    /// The failure of a request about `repository`, or about a file of it.
    pub fn of(error: ureq::Error, repository: &Repository, file: Option<&str>, environment: &HubEnvironment) -> Self {
        let token = environment.token.is_some();
        let response = match error {
            ureq::Error::Status(_, response) => response,
            ureq::Error::Transport(transport) => {
                let endpoint = environment.endpoint.clone();
                if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
                    return Self::NoAddress(endpoint);
                }
                return Self::NoNetwork { endpoint, reason: transport.to_string() };
            }
        };
        let code = response.header("X-Error-Code").unwrap_or_default().to_owned();
        match response.status() {
            status @ (401 | 403) => {
                Self::NoAccess { status, token, page: format!("{}/{}", environment.endpoint, repository.page()) }
            }
            404 if code == "RevisionNotFound" => Self::NoRevision(repository.to_string()),
            404 => match file.filter(|_| code != "RepoNotFound") {
                Some(file) => Self::NoFile { file: file.to_owned(), repository: repository.to_string() },
                None => Self::NoRepository(repository.to_string()),
            },
            429 => {
                // `RateLimit` is like `"api";r=0;t=55`: seconds until it ends.
                let header = |name: &str| response.header(name).map(str::to_owned);
                let reset = || Some(header("RateLimit")?.split(";t=").nth(1)?.split([';', ',']).next()?.to_owned());
                let seconds = header("Retry-After").or_else(reset);
                let wait = seconds.map_or("in a few minutes".to_owned(), |seconds| format!("in {seconds} seconds"));
                Self::RateLimit { wait, token }
            }
            status => {
                let message = response.header("X-Error-Message").map(str::to_owned);
                Self::Status(status, message.unwrap_or_else(|| response.status_text().to_owned()))
            }
        }
    }

    /// Whether the same request may succeed a moment later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::NoNetwork { .. } | Self::Truncated(_) | Self::Status(408 | 500..=599, _))
    }
}

impl fmt::Display for HubFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAccess { status, token: false, page } => write!(
                f,
                "no access (HTTP {status}): log in (set HF_TOKEN, or run `hf auth login`) or accept the terms at {page} if \
                 it has any; also check the name, since without a login the Hub says the same of repositories that do not \
                 exist"
            ),
            Self::NoAccess { status, token: true, page } => write!(
                f,
                "no access (HTTP {status}): the token that was sent gives none; accept the terms at {page} if it has any, \
                 or log in with another token (set HF_TOKEN, or run `hf auth login`)"
            ),
            Self::NoRepository(repository) => {
                write!(f, "no such repository (HTTP 404): {repository}; check organization and name")
            }
            Self::NoRevision(repository) => {
                write!(
                    f,
                    "no such revision (HTTP 404): {repository}; give a branch, a tag or a full commit hash, with %2F for a \
                     slash in its name"
                )
            }
            Self::NoFile { file, repository } => write!(
                f,
                "no such file (HTTP 404): {repository} lists `{file}` but does not have it; if HF_ENDPOINT is a mirror, it \
                 may be incomplete"
            ),
            Self::RateLimit { wait, token } => {
                let login = if *token { "" } else { ", or log in (set HF_TOKEN), which allows more requests" };
                write!(f, "rate limit of the Hub reached (HTTP 429): try again {wait}{login}")
            }
            Self::Status(status, message) => write!(f, "the Hub failed (HTTP {status}: {message}); try again later"),
            Self::NoAddress(endpoint) => {
                write!(f, "HF_ENDPOINT is `{endpoint}`; expected an address that begins with https:// or http://")
            }
            Self::NoNetwork { endpoint, reason } => {
                write!(
                    f,
                    "no network: {endpoint} cannot be reached ({reason}); check the connection, proxy and HF_ENDPOINT"
                )
            }
            Self::Truncated(reason) => {
                write!(f, "the download stopped early ({reason}); run the command again to resume it")
            }
            Self::Offline => f.write_str("HF_HUB_OFFLINE is set, so nothing is downloaded"),
        }
    }
}

impl std::error::Error for HubFailure {}
