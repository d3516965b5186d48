"""Every block of docs/clients.md is run against a server, and its results checked."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import openai
import pytest
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings
from servers import PATIENCE, Server, running, short, small
from tokenizers import Tokenizer

from m3fast import scoring

QUERY = "What is BGE M3?"
PASSAGE, OTHER = "BGE M3 is an embedding model.", "BM25 ranks by terms."
PAGE = Path(__file__, "../../../docs/clients.md").resolve().read_text()
SECTIONS = [section.partition("\n") for section in PAGE.split("\n### ")[1:]]
# {heading: (language, code)}
BLOCKS = {
    heading: re.search(r"^```(\w+)\n(.*?)^```$", rest, re.M | re.S).groups()
    for heading, _, rest in SECTIONS
}
CLOSE = dict(rtol=0, atol=1e-5)


def dense(*texts: str, **options: Any) -> np.ndarray:
    return small().encode(list(texts), sparse=False, colbert=False, **options).dense


def run(heading: str, server: Server) -> Any:
    """What a block leaves: its variables, or what curl has printed."""
    language, code = BLOCKS[heading]
    code = code.replace("http://127.0.0.1:8080", server.url)
    assert server.url in code
    if language == "bash":
        ended = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code], capture_output=True, timeout=PATIENCE
        )
        assert ended.returncode == 0, ended.stderr.decode()
        return ended.stdout
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, heading, "exec"), names)
    return names


def openai_vectors(found):
    np.testing.assert_allclose(found["vectors"], dense(QUERY, PASSAGE), **CLOSE)
    assert found["model"] == "m3fast-tiny"
    expected = int(small().encode([QUERY, PASSAGE]).n_tokens.sum())
    assert found["answer"].usage.prompt_tokens == expected


def openai_dimensions(found):
    expected = dense(QUERY)[0, :64]
    np.testing.assert_allclose(found["vector"], expected / np.linalg.norm(expected), **CLOSE)


def openai_floats(found):
    np.testing.assert_allclose(found["vector"], dense(QUERY)[0], **CLOSE)


def openai_async(found):
    text = "BGE M3 is an embedding model. " * 2000
    wanted = short().encode(text, sparse=False, colbert=False)
    assert wanted.truncated.all()
    np.testing.assert_allclose(found["vector"], wanted.dense[0], **CLOSE)


def langchain(found):
    np.testing.assert_allclose(found["documents"], dense(PASSAGE, OTHER), **CLOSE)
    np.testing.assert_allclose(found["query"], dense(QUERY)[0], **CLOSE)


def feature_extraction(found):
    np.testing.assert_allclose(found["vectors"], dense(QUERY, PASSAGE), **CLOSE)
    raw = found["raw"]
    assert raw.shape == (1, small().config.hidden_size)
    length = np.linalg.norm(raw)
    assert abs(length - 1) > 0.1
    np.testing.assert_allclose(raw[0] / length, dense(QUERY)[0], **CLOSE)


def cosines() -> np.ndarray:
    return dense(PASSAGE, OTHER) @ dense(QUERY)[0]


def sentence_similarity(found):
    np.testing.assert_allclose(found["scores"], cosines(), **CLOSE)


def curl_openai(printed):
    answer = json.loads(printed)
    vectors = [item["embedding"] for item in answer["data"]]
    np.testing.assert_allclose(vectors, dense(QUERY, PASSAGE), **CLOSE)


def curl_dense(printed):
    np.testing.assert_allclose(json.loads(printed), dense(QUERY, PASSAGE), **CLOSE)


def same_sparse(rows: list[dict[int, float]]):
    expected = small().encode([QUERY, PASSAGE]).sparse.to_dicts()
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        assert row == pytest.approx(wanted, abs=1e-5)


def curl_sparse(printed):
    same_sparse([{e["index"]: e["value"] for e in row} for row in json.loads(printed)])


def same_vectors(texts: list[Any], count: int = 2, **close: float):
    expected = small().encode([QUERY, PASSAGE][:count]).colbert
    for found, wanted in zip(texts, expected, strict=True):
        np.testing.assert_allclose(np.asarray(found, np.float32), wanted, **(close or CLOSE))


def curl_tokens_vectors(printed):
    same_vectors(json.loads(printed))


def curl_similarity(printed):
    np.testing.assert_allclose(json.loads(printed), cosines(), **CLOSE)


def hybrid() -> dict[str, float]:
    """By passage, of the query."""
    engine = small()
    scores = scoring.all_scores(engine.encode(QUERY), engine.encode([PASSAGE, OTHER]))
    values = scoring.hybrid_scores(scores, weights="miracl")[0]
    return dict(zip([PASSAGE, OTHER], values.tolist(), strict=True))


def best_first() -> list[str]:
    return sorted(hybrid(), key=hybrid().get, reverse=True)


def curl_rerank(printed):
    answer = json.loads(printed)
    assert [each["text"] for each in answer] == best_first()
    for each in answer:
        assert each["score"] == pytest.approx(hybrid()[each["text"]], abs=1e-4)
        assert [OTHER, PASSAGE][each["index"]] == each["text"]


def curl_tokenize(printed):
    [tokens] = json.loads(printed)
    plain = Tokenizer.from_file(str(small().path / "tokenizer.json")).encode(QUERY)
    assert [token["id"] for token in tokens] == plain.ids
    places = [(token["start"], token["stop"]) for token in tokens if not token["special"]]
    assert places == plain.offsets[1:-1]
    assert (tokens[0]["start"], tokens[-1]["stop"]) == (None, None)


def curl_cohere(printed):
    [best] = json.loads(printed)["results"]
    text = best["document"]["text"]
    assert text == best_first()[0] == [OTHER, PASSAGE][best["index"]]
    assert best["relevance_score"] == pytest.approx(hybrid()[text], abs=1e-4)


def curl_native(printed):
    answer = json.loads(printed)
    np.testing.assert_allclose(answer["dense"], dense(QUERY, PASSAGE), **CLOSE)
    rows = answer["sparse"]
    same_sparse([dict(zip(row["indices"], row["values"], strict=True)) for row in rows])
    same_vectors(answer["colbert"])


def curl_score(printed):
    answer = json.loads(printed)
    engine = small()
    scores = scoring.all_scores(engine.encode(QUERY), engine.encode([PASSAGE, OTHER]))
    for name, values in scores.items():
        np.testing.assert_allclose(answer[name], values[0], rtol=0, atol=1e-4)
    assert {"sparse+dense", "colbert+sparse+dense"} < answer.keys()


def curl_health(printed):
    assert printed.count(b'"ok"') == 2


def half_precision(found):
    same_vectors(found["vectors"], rtol=0, atol=1e-3)
    assert found["vectors"][0].dtype == np.float16


def int8(found):
    same_vectors([found["vectors"]], 1, rtol=0, atol=5e-3)
    assert found["parts"]["colbert_values"].dtype == np.int8


CHECKS = {
    "openai: vectors": openai_vectors,
    "openai: fewer dimensions": openai_dimensions,
    "openai: floats as JSON": openai_floats,
    "openai: async, a text that is too long, an overloaded server": openai_async,
    "LangChain: OpenAIEmbeddings": langchain,
    "huggingface_hub: feature_extraction": feature_extraction,
    "huggingface_hub: sentence_similarity": sentence_similarity,
    "curl: OpenAI": curl_openai,
    "curl: TEI, dense": curl_dense,
    "curl: TEI, sparse": curl_sparse,
    "curl: TEI, a vector per token": curl_tokens_vectors,
    "curl: TEI, similarity": curl_similarity,
    "curl: TEI, rerank": curl_rerank,
    "curl: TEI, tokens": curl_tokenize,
    "curl: Cohere, Jina and vLLM, rerank": curl_cohere,
    "curl: native, any of the three outputs": curl_native,
    "curl: native, scores of pairs": curl_score,
    "curl: health": curl_health,
    "requests and safetensors: vectors per token": half_precision,
    "requests and safetensors: int8": int8,
}


def off_the_hub(monkeypatch):
    """Where tests are told to keep off the hub, its library would keep off every host."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_every_block_of_the_page_is_run():
    assert list(BLOCKS) == list(CHECKS)
    assert len(BLOCKS) == PAGE.count("```") // 2


@pytest.mark.parametrize("heading", CHECKS)
def test_a_block_of_the_page(heading, server, monkeypatch):
    if BLOCKS[heading][0] == "bash" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    if heading.startswith("huggingface_hub"):
        off_the_hub(monkeypatch)
    if "too long" not in heading:
        CHECKS[heading](run(heading, server))
        return
    with running(short()) as server:  # where a text beyond the limit costs little
        CHECKS[heading](run(heading, server))


def test_clients_send_their_keys(monkeypatch):
    off_the_hub(monkeypatch)
    key = "sesame-1234"
    with running(api_keys=(key,)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key)
        assert len(client.embeddings.create(model="m3fast-tiny", input=QUERY).data) == 1
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="other").embeddings.create(model="m3fast-tiny", input=QUERY)
        hub = huggingface_hub.InferenceClient(server.url, token=key)
        assert hub.feature_extraction(QUERY).shape == (1, small().config.hidden_size)
        with pytest.raises(HfHubHTTPError, match="401"):
            huggingface_hub.InferenceClient(server.url, token="other").feature_extraction(QUERY)
        chain = OpenAIEmbeddings(
            base_url=f"{server.url}/v1", api_key=key, check_embedding_ctx_length=False
        )
        with pytest.raises(openai.NotFoundError, match="model"):  # LangChain's default model
            chain.embed_query(QUERY)
