//! Opens a tokenizer: from a model folder, as transformers does, from a GGUF file, or from memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lorakit_format::gguf::GgufValue;
use lorakit_format::refuse_lfs_pointer;
use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer as HubTokenizer};

use crate::chat::template_file;
use crate::error::{At, Result, TaskError};
use crate::optional_json::read_json;
use crate::tokenization::added_tokens::{AddedTokens, TokenFiles, own_tokens};
use crate::tokenization::gguf::gguf_tokenizer::GgufTokenizer;
use crate::tokenization::row_layout::RowLayout;
use crate::tokenization::special_tokens::{self, SpecialTokens};
use crate::tokenization::tokenizer::Tokenizer;
use crate::tokenization::tokenizer_class::{ClassSettings, TokenizerClass};

impl Tokenizer {
    /// Opens a Hugging Face model folder as transformers 5 does: `tokenizer.json`; the tokens that only
    /// `tokenizer_config.json`, `special_tokens_map.json` or `added_tokens.json` has; `split_special_tokens`; and what the
    /// folder's tokenizer class builds itself, such as `add_prefix_space`. EOS comes from the same files, `config.json` or
    /// `generation_config.json`. `add_bos_token` and `add_eos_token` have no effect: the post-processor decides.
    ///
    /// # Errors
    /// If a file cannot be read, or none names an EOS token that the model has.
    pub fn open(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path)
            .map_err(TaskError::read(format!("{}; a model folder needs a tokenizer", path.display())))?;
        refuse_lfs_pointer(&path, &bytes).map_err(|error| TaskError::Data(error.to_string()))?;
        let read = |file: &str| -> Result<Value> { Ok(read_json(&folder.join(file))?.unwrap_or_default()) };
        let settings = ClassSettings { config: read("config.json")?, tokenizer: read("tokenizer_config.json")? };
        let (special_map, added) = (read("special_tokens_map.json")?, read("added_tokens.json")?);
        let class = TokenizerClass::of(&settings, &bytes);
        let (mut tokenizer, own) = build(&bytes, class, &settings.tokenizer).at(|| path.display().to_string())?;
        let files = TokenFiles { config: &settings.tokenizer, special_map: &special_map, added: &added, own };
        let added = AddedTokens::read(files, class).at(|| folder.display().to_string())?;
        let names = added.texts_by_name();
        let mut warnings = added.add_to(&mut tokenizer, class).at(|| folder.display().to_string())?;
        tokenizer.set_encode_special_tokens(settings.tokenizer["split_special_tokens"].as_bool().unwrap_or(false));
        let special = special_tokens::read(folder, &tokenizer)?;
        let layout = RowLayout::of_config(&settings.config, &read("generation_config.json")?, folder)?;
        let opened = Tokenizer::new(tokenizer, special).at(|| folder.display().to_string())?;
        warnings.extend(unused_bos_flag(&opened, &settings.tokenizer));
        let template = template_file::read(folder, names).map_err(|error| error.chain());
        Ok(opened.with_layout(layout).with_found_template(template).with_warnings(warnings))
    }

    /// A tokenizer in memory: the bytes of a `tokenizer.json`, and the text of its EOS token.
    ///
    /// # Errors
    /// If the bytes are not a tokenizer, or it has no such token.
    pub fn from_bytes(json: &[u8], eos: &str) -> Result<Tokenizer> {
        let tokenizer = parse(json)?;
        let id = tokenizer.token_to_id(eos).ok_or_else(|| {
            TaskError::SpecialTokens(format!("the tokenizer has no token `{eos}`, which should be its EOS"))
        })?;
        Tokenizer::new(tokenizer, SpecialTokens { bos: None, eos: id, stops: BTreeSet::from([id]) })
    }

    /// The tokenizer and the chat template of a GGUF file with this metadata: byte-level (`gpt2`) or SentencePiece's
    /// (`llama`), the same tokens as those of the Hugging Face folder that the file was made from.
    ///
    /// # Errors
    /// If the file has no tokenizer, one of an unknown kind, or one that contradicts itself; the error names the key.
    pub fn from_gguf(metadata: &BTreeMap<String, GgufValue>) -> Result<Tokenizer> {
        let file = GgufTokenizer::read(metadata)?;
        let chat_template = file.chat_template().map_err(|error| error.chain());
        let tokenizer = Tokenizer::new(file.tokenizer, file.special)?;
        Ok(tokenizer.with_found_template(chat_template).with_warnings(file.warnings))
    }
}

/// What to say of an `add_bos_token` that the post-processor contradicts.
fn unused_bos_flag(tokenizer: &Tokenizer, config: &Value) -> Option<String> {
    let flag = config["add_bos_token"].as_bool().filter(|&flag| flag != tokenizer.adds_bos())?;
    let adds = if flag { "adds none" } else { "adds it" };
    Some(format!(
        "`add_bos_token` in tokenizer_config.json is {flag}, but the post-processor of tokenizer.json, which decides, \
         {adds}"
    ))
}

fn parse(json: &[u8]) -> Result<HubTokenizer> {
    HubTokenizer::from_bytes(json).map_err(TaskError::tokenizer("not a tokenizer.json"))
}

/// The tokenizer as its class builds it, and the tokens that the file adds.
fn build(
    bytes: &[u8],
    class: TokenizerClass,
    tokenizer_config: &Value,
) -> Result<(HubTokenizer, BTreeMap<u32, AddedToken>)> {
    let as_file = || {
        let tokenizer = parse(bytes)?;
        let own = tokenizer.get_added_tokens_decoder().into_iter().collect();
        Ok((tokenizer, own))
    };
    if class == TokenizerClass::AsFile {
        return as_file();
    }
    let mut json: Value = serde_json::from_slice(bytes)?;
    if !class.rebuilds(&json["model"]) {
        return as_file();
    }
    let own = own_tokens(&json["added_tokens"])?;
    class.rebuild(&mut json, tokenizer_config);
    let rebuilt = serde_json::from_value(json);
    Ok((rebuilt.map_err(|error| TaskError::Tokenizer { what: "cannot be rebuilt", message: error.to_string() })?, own))
}
