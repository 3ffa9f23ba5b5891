//! The environment variables of huggingface_hub, with the meaning that they have there.

use super::no_proxy::NoProxy;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// The settings of huggingface_hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubEnvironment {
    /// The folder of the cache: `HF_HUB_CACHE`, else `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// The address of the Hub, without a slash at the end: `HF_ENDPOINT`.
    pub endpoint: String,
    /// The token to log in with: `HF_TOKEN`, else the content of the file `HF_TOKEN_PATH`.
    pub token: Option<String>,
    /// Whether nothing is downloaded: `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Whether progress is shown: not with `HF_HUB_DISABLE_PROGRESS_BARS`.
    pub progress: bool,
    /// The hosts that are reached without a proxy: `no_proxy`, else `NO_PROXY`.
    pub no_proxy: NoProxy,
}

impl HubEnvironment {
    /// The settings of this process.
    pub fn read() -> Self {
        // `vars` panics at a variable that is not Unicode, whatever its name.
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self::of(&std::env::vars_os().filter_map(text).collect())
    }

    /// The settings that these variables give. Empty ones count as unset.
    fn of(variables: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        let path = |name: &str| get(name).map(|value| PathBuf::from(expanded(value, variables)));
        let is_true = |names: &[&str]| {
            let value = names.iter().find_map(|name| get(name));
            value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
        };
        let cache_home = || path("XDG_CACHE_HOME").unwrap_or_else(|| PathBuf::from(expanded("~/.cache", variables)));
        let home = path("HF_HOME").unwrap_or_else(|| cache_home().join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home.join("hub"));
        let clean =
            |token: &str| Some(token.replace(['\r', '\n'], "").trim().to_owned()).filter(|token| !token.is_empty());
        let in_variable = || clean(get("HF_TOKEN").or_else(|| get("HUGGING_FACE_HUB_TOKEN"))?);
        let in_file = || {
            let file = path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
            clean(&std::fs::read_to_string(file).ok()?)
        };
        let anonymous = is_true(&["HF_HUB_DISABLE_IMPLICIT_TOKEN"]);
        Self {
            token: if anonymous { None } else { in_variable().or_else(in_file) },
            cache: std::path::absolute(&cache).unwrap_or(cache),
            endpoint: get("HF_ENDPOINT").map_or("https://huggingface.co", |text| text.trim_end_matches('/')).to_owned(),
            offline: is_true(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]),
            progress: !is_true(&["HF_HUB_DISABLE_PROGRESS_BARS"]),
            no_proxy: get("no_proxy").or_else(|| get("NO_PROXY")).map(|list| NoProxy::parse(list)).unwrap_or_default(),
        }
    }
}

/// The path with a `~` at its start, `$NAME` and `${NAME}` replaced, as by Python's `expanduser` and `expandvars`.
fn expanded(path: &str, variables: &BTreeMap<String, String>) -> String {
    let home = variables.get("HOME").or_else(|| variables.get("USERPROFILE"));
    let path = match (path.strip_prefix('~'), home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with(['/', '\\']) => format!("{home}{rest}"),
        _ => path.to_owned(),
    };
    let mut pieces = path.split('$');
    let mut whole = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = match piece.strip_prefix('{').and_then(|piece| piece.split_once('}')) {
            Some(split) => split,
            None => piece.split_at(piece.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(piece.len())),
        };
        match variables.get(name) {
            Some(value) => whole.extend([value, rest]),
            None => whole.extend(["$", piece]),
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::Path;

    fn of(variables: &[(&str, &str)]) -> HubEnvironment {
        HubEnvironment::of(&variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// As huggingface_hub 2.4's `constants` has them.
    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let cache = |variables: &[(&str, &str)]| of(variables).cache.display().to_string();
        let home = ("HOME", "/home/a");
        assert_eq!(cache(&[home]), "/home/a/.cache/huggingface/hub");
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/x")]), "/x/huggingface/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "~/hf")]), "/home/a/hf/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "$HOME/hf/${NONE}")]), "/home/a/hf/${NONE}/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[home, ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "${HOME}/c")]), "/home/a/c");
    }

    #[test]
    fn the_token_is_that_of_the_variable_or_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name).display().to_string()
        };
        let (_, other) = (write("token", " in-home\n"), write("other", "in-file\r\n"));
        let path = |path: &Path| path.display().to_string();
        let home = path(folder.path());
        let token = |more: &[(&str, &str)]| of(&[&[("HF_HOME", home.as_str())], more].concat()).token;
        assert_eq!(token(&[]).unwrap(), "in-home");
        assert_eq!(token(&[("HF_TOKEN_PATH", &other)]).unwrap(), "in-file");
        assert_eq!(token(&[("HF_TOKEN", "abc\n")]).unwrap(), "abc");
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "old")]).unwrap(), "old");
        assert_eq!(token(&[("HF_TOKEN", "abc"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(of(&[("HF_HOME", "/none")]).token, None);
    }

    #[test]
    fn flags_and_addresses() {
        assert_eq!(of(&[]).endpoint, "https://huggingface.co");
        assert_eq!(of(&[("HF_ENDPOINT", "http://mirror:1/")]).endpoint, "http://mirror:1");
        assert!(of(&[("HF_HUB_OFFLINE", "yes")]).offline && of(&[("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(!of(&[("HF_HUB_OFFLINE", "0"), ("TRANSFORMERS_OFFLINE", "1")]).offline);
        assert!(!of(&[("HF_HUB_DISABLE_PROGRESS_BARS", "1")]).progress);
    }
}
