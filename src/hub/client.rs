//! Requests to the Hub: what a repository holds, and which repositories there are.

use super::hub_environment::HubEnvironment;
use super::hub_failure::HubFailure;
use super::repository::Repository;
use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// A Hub, with the user's settings.
pub struct HubClient {
    /// The settings.
    pub environment: HubEnvironment,
    agent: ureq::Agent,
}

/// What the Hub says of a repository at a revision.
#[derive(Deserialize)]
pub struct RepositoryInfo {
    /// The commit.
    #[serde(rename = "sha")]
    pub commit: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
    /// The metadata of its README.
    #[serde(rename = "cardData", default)]
    pub card: Value,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    /// The hash that git names the file by.
    #[serde(rename = "blobId", default)]
    blob: Option<String>,
    #[serde(default)]
    lfs: Option<LargeFile>,
    /// In bytes.
    #[serde(default)]
    size: Option<u64>,
}

#[derive(Deserialize)]
struct LargeFile {
    sha256: Option<String>,
}

impl RepositoryInfo {
    /// Its files, by their paths within it.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        // A path that leads out of the repository's folder would be written there.
        let is_inside = |path: &&str| path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        self.siblings.iter().map(|file| file.rfilename.as_str()).filter(is_inside)
    }

    /// The size of a file in bytes, if the Hub says it.
    pub fn size(&self, path: &str) -> Option<u64> {
        self.siblings.iter().find(|file| file.rfilename == path)?.size
    }

    /// The name of a file's content in the cache, if the Hub says it: a hash, which files of several commits share.
    pub fn blob(&self, path: &str) -> Option<&str> {
        let file = self.siblings.iter().find(|file| file.rfilename == path)?;
        let large = file.lfs.as_ref().and_then(|large| large.sha256.as_deref());
        let is_hash = |name: &&str| !name.is_empty() && name.chars().all(|c| c.is_ascii_hexdigit());
        large.or(file.blob.as_deref()).filter(is_hash)
    }
}

impl HubClient {
    /// The Hub that the environment variables name.
    pub fn new() -> Self {
        let agent = ureq::AgentBuilder::new()
            .try_proxy_from_env(true)
            // Files of renamed repositories are elsewhere on the same host, which needs the token.
            .redirect_auth_headers(ureq::RedirectAuthHeaders::SameHost)
            .timeout_connect(Duration::from_secs(10))
            .timeout_read(Duration::from_secs(30));
        Self { environment: HubEnvironment::read(), agent: agent.build() }
    }

    /// What `repository` holds at its revision.
    pub fn info(&self, repository: &Repository) -> Result<Result<RepositoryInfo, HubFailure>> {
        let url = format!("{}/{}?blobs=true", self.environment.endpoint, repository.info_path());
        Ok(match self.get(&url) {
            Ok(response) => Ok(parsed(response, &url)?),
            Err(error) => {
                Err(error.map_or(HubFailure::Offline, |error| HubFailure::of(*error, repository, &self.environment)))
            }
        })
    }

    /// The names of the organization's model repositories whose names contain `text`, over all pages.
    pub fn search(&self, organization: &str, text: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Entry {
            id: String,
        }
        let repository = Repository {
            kind: super::repository::RepositoryKind::Model,
            name: organization.to_owned(),
            revision: None,
        };
        let mut names = Vec::new();
        let endpoint = &self.environment.endpoint;
        let mut next = Some(format!("{endpoint}/api/models?author={organization}&search={text}&limit=1000"));
        while let Some(url) = next {
            let response = self.get(&url).map_err(|error| {
                error.map_or(HubFailure::Offline, |error| HubFailure::of(*error, &repository, &self.environment))
            })?;
            next = response.header("Link").and_then(next_page).map(|page| match page.strip_prefix('/') {
                Some(path) => format!("{endpoint}/{path}"),
                None => page.to_owned(),
            });
            names.extend(parsed::<Vec<Entry>>(response, &url)?.into_iter().map(|entry| entry.id));
        }
        Ok(names)
    }

    /// The response with the whole content of a file of `repository`, which must be at a commit.
    pub fn file(&self, repository: &Repository, file: &str) -> Result<ureq::Response, HubFailure> {
        let (endpoint, page, commit) = (&self.environment.endpoint, repository.page(), repository.revision());
        let request = self.request(&format!("{endpoint}/{page}/resolve/{commit}/{file}"));
        // Compressed, it would have no length that can be checked.
        let response = request.set("Accept-Encoding", "identity").call();
        response.map_err(|error| HubFailure::of(error, repository, &self.environment))
    }

    /// The response to a request; the error is None where no request may be made.
    fn get(&self, url: &str) -> Result<ureq::Response, Option<Box<ureq::Error>>> {
        if self.environment.offline {
            return Err(None);
        }
        self.request(url).call().map_err(|error| Some(Box::new(error)))
    }

    fn request(&self, url: &str) -> ureq::Request {
        let mut request = self.agent.get(url).set("User-Agent", concat!("lorakit/", env!("CARGO_PKG_VERSION")));
        // A link to a next page may lead elsewhere, which must not see the token.
        if let Some(token) = self.environment.token.as_ref().filter(|_| is_below(url, &self.environment.endpoint)) {
            request = request.set("Authorization", &format!("Bearer {token}"));
        }
        request
    }
}

fn parsed<T: DeserializeOwned>(response: ureq::Response, url: &str) -> Result<T> {
    serde_json::from_reader(response.into_reader())
        .with_context(|| format!("{url}: not an answer of the Hub; check HF_ENDPOINT and proxies"))
}

/// Whether an address is at an endpoint. One that only begins with the same letters belongs to another host.
fn is_below(url: &str, endpoint: &str) -> bool {
    url.strip_prefix(endpoint.trim_end_matches('/')).is_some_and(|rest| rest.starts_with(['/', '?']))
}

/// The address of the next page in a `Link` header: `<https://...>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
    let next = link.split(',').find(|part| part.contains(r#"rel="next""#))?;
    next.split_once('<')?.1.split_once('>').map(|(url, _)| url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_at_the_endpoint_see_the_token() {
        let hub = "https://huggingface.co";
        for endpoint in [hub, "https://huggingface.co/"] {
            assert!(is_below("https://huggingface.co/api/models?search=x", endpoint));
            assert!(is_below("https://huggingface.co?x", endpoint));
        }
        for other in
            ["https://huggingface.co.evil.org/x", "https://huggingface.co@evil.org/x", "http://huggingface.co/x"]
        {
            assert!(!is_below(other, hub), "{other}");
        }
    }
}
