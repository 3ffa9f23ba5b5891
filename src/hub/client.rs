//! Requests to the Hub: what a repository holds, and which repositories there are.

use super::hub_environment::HubEnvironment;
use super::hub_failure::HubFailure;
use super::repository::{Repository, RepositoryKind, is_commit_hash};
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// A Hub, with the user's settings.
pub struct HubClient {
    /// The settings.
    pub environment: HubEnvironment,
    /// Uses the proxy of the environment variables, if they name one.
    proxied: ureq::Agent,
    direct: ureq::Agent,
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
        let agent = |proxy| {
            let agent = ureq::AgentBuilder::new()
                .try_proxy_from_env(proxy)
                .redirects(0)
                .timeout_connect(Duration::from_secs(10))
                .timeout_read(Duration::from_secs(30));
            agent.build()
        };
        Self { environment: HubEnvironment::read(), proxied: agent(true), direct: agent(false) }
    }

    /// What `repository` holds at its revision.
    pub fn info(&self, repository: &Repository) -> Result<Result<RepositoryInfo, HubFailure>> {
        let url = format!("{}/{}?blobs=true", self.environment.endpoint, repository.info_path());
        let info: RepositoryInfo = match self.get(&url) {
            Ok(response) => parsed(response, &url)?,
            Err(error) => return Ok(Err(self.failure(error, repository, None))),
        };
        // It becomes a folder of the cache, and a path would lead out of it.
        ensure!(is_commit_hash(&info.commit), "{}: the commit is `{}`", not_of_the_hub(&url), info.commit);
        Ok(Ok(info))
    }

    /// The names of the organization's model repositories whose names contain `text`, over all pages.
    pub fn search(&self, organization: &str, text: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Entry {
            id: String,
        }
        let repository = Repository { kind: RepositoryKind::Model, name: organization.to_owned(), revision: None };
        let mut names = Vec::new();
        let endpoint = &self.environment.endpoint;
        let mut next = Some(format!("{endpoint}/api/models?author={organization}&search={text}&limit=1000"));
        while let Some(url) = next {
            let response = self.get(&url).map_err(|error| self.failure(error, &repository, None))?;
            next = response.header("Link").and_then(next_page).map(|page| match page.strip_prefix('/') {
                Some(path) => format!("{endpoint}/{path}"),
                None => page.to_owned(),
            });
            names.extend(parsed::<Vec<Entry>>(response, &url)?.into_iter().map(|entry| entry.id));
        }
        Ok(names)
    }

    /// The failure that an error of [`send`](Self::send) is, in a request about `repository`, or about a file of it.
    pub fn failure(&self, error: Option<Box<ureq::Error>>, repository: &Repository, file: Option<&str>) -> HubFailure {
        error.map_or(HubFailure::Offline, |error| HubFailure::of(*error, repository, file, &self.environment))
    }

    fn get(&self, url: &str) -> Result<ureq::Response, Option<Box<ureq::Error>>> {
        self.send("GET", url, &[], |_| false)
    }

    /// The response to a request; the error is None when offline. Redirects are followed, except to another host where
    /// `is_answered` accepts the redirect itself.
    pub fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        is_answered: impl Fn(&ureq::Response) -> bool,
    ) -> Result<ureq::Response, Option<Box<ureq::Error>>> {
        if self.environment.offline {
            return Err(None);
        }
        let (mut url, mut redirects) = (url.to_owned(), 0);
        loop {
            let request =
                headers.iter().fold(self.request(method, &url), |request, (name, value)| request.set(name, value));
            let address = request.request_url();
            let response = request.call().map_err(Box::new)?;
            let location = response.header("Location").filter(|_| (300..400).contains(&response.status()));
            let target = location.and_then(|location| address.ok()?.as_url().join(location).ok());
            let Some(target) = target else { return Ok(response) };
            if is_answered(&response) && !has_same_origin(target.as_str(), &self.environment.endpoint) {
                return Ok(response);
            }
            if redirects == MAX_REDIRECTS {
                return Err(Some(Box::new(ureq::Error::Status(response.status(), response))));
            }
            (url, redirects) = (target.into(), redirects + 1);
        }
    }

    /// A request through the proxy of the environment variables, unless its host is reached without. A redirection or a
    /// link to a next page may lead to another host than the Hub's, which must not see the token.
    fn request(&self, method: &str, url: &str) -> ureq::Request {
        let parsed = self.direct.request(method, url).request_url();
        let is_direct = parsed.is_ok_and(|parsed| {
            self.environment.no_proxy.covers(parsed.host(), parsed.as_url().port_or_known_default())
        });
        let agent = if is_direct { &self.direct } else { &self.proxied };
        let request = agent.request(method, url).set("User-Agent", concat!("lorakit/", env!("CARGO_PKG_VERSION")));
        match self.environment.token.as_ref().filter(|_| has_same_origin(url, &self.environment.endpoint)) {
            Some(token) => request.set("Authorization", &format!("Bearer {token}")),
            None => request,
        }
    }
}

/// How many redirections are followed.
const MAX_REDIRECTS: u32 = 10;

fn parsed<T: DeserializeOwned>(response: ureq::Response, url: &str) -> Result<T> {
    serde_json::from_reader(response.into_reader()).with_context(|| not_of_the_hub(url))
}

/// What to say of an answer that the Hub cannot have given.
pub(super) fn not_of_the_hub(url: &str) -> String {
    format!("{url}: not an answer of the Hub; check HF_ENDPOINT and proxies")
}

/// Whether two URLs have the same origin: scheme, host and port.
fn has_same_origin(url: &str, other: &str) -> bool {
    let origin = |url: &str| Some(ureq::get(url).request_url().ok()?.as_url().origin());
    origin(url).is_some_and(|own| Some(own) == origin(other))
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
            assert!(has_same_origin("https://huggingface.co/api/models?search=x", endpoint));
            assert!(has_same_origin("https://huggingface.co?x", endpoint));
        }
        for other in [
            "https://huggingface.co.evil.org/x",
            "https://huggingface.co@evil.org/x",
            "http://huggingface.co/x",
            "https://huggingface.co:8443/x",
            "https://cdn.huggingface.co/x",
        ] {
            assert!(!has_same_origin(other, hub), "{other}");
        }
    }
}
