// Tests csrc/checkpoint/json.h and config.h: typed reading, and errors that name file, key, the expected and the found value.
#include <limits>
#include <string>

#include "check.h"
#include "checkpoint/config.h"
#include "checkpoint/json.h"
#include "temp_folder.h"

using namespace lynx_rt;

namespace {

constexpr ErrorCode kCorrupt = ErrorCode::kCorruptFile;

ConfigReader reader(const std::string& text) { return ConfigReader::parse(text, "config.json"); }

void test_json_values() {
  const Json json = parse_json(R"({"b": [1, -2, 2.5, 1e3], "a": {"x": null, "y": true}, "s": "A\u00e9"})", "f", "config");
  CHECK(json.as<Json::Object>());
  const auto& b = *json.find("b")->as<Json::Array>();
  CHECK_EQ(*b[0].as<int64_t>(), 1);
  CHECK_EQ(*b[1].as<int64_t>(), -2);
  CHECK_EQ(*b[2].as<double>(), 2.5);
  CHECK(b[3].as<double>());  // an exponent makes it a real number
  CHECK(json.find("a")->find("x")->as<std::nullptr_t>());
  CHECK(*json.find("a")->find("y")->as<bool>());
  CHECK_EQ(*json.find("s")->as<std::string>(), std::string("A\xc3\xa9"));
  CHECK(!json.find("absent"));
  CHECK(!json.find("b")->find("x"));  // not an object

  const Json big = parse_json("[9223372036854775807, 9223372036854775808, -9223372036854775808]", "f", "config");
  const auto& items = *big.as<Json::Array>();
  CHECK_EQ(*items[0].as<int64_t>(), std::numeric_limits<int64_t>::max());
  CHECK(items[1].as<double>());
  CHECK_EQ(*items[2].as<int64_t>(), std::numeric_limits<int64_t>::min());
}

void test_json_refusals() {
  const auto parse = [](const std::string& text) { return parse_json(text, "m/x.json", "index"); };
  CHECK_THROWS(parse(""), kCorrupt, "m/x.json", {"m/x.json: index: not valid JSON at byte 1"});
  CHECK_THROWS(parse("{\"a\": }"), kCorrupt, "m/x.json", {"byte 7", "line 1, column 7"});
  CHECK_THROWS(parse("{\"a\": 1} x"), kCorrupt, "m/x.json", {"byte 10"});
  CHECK_THROWS(parse("[1, 2,]"), kCorrupt, "m/x.json", {"byte 7"});
  CHECK_THROWS(parse("{} // no"), kCorrupt, "m/x.json", {"byte 4"});
  CHECK_THROWS(parse("[NaN]"), kCorrupt, "m/x.json", {"byte 2"});
  CHECK_THROWS(parse("[1e999]"), kCorrupt, "m/x.json", {"number overflow", "1e999"});
  CHECK_THROWS(parse("[\"\xff\"]"), kCorrupt, "m/x.json", {"UTF-8", "\\xff"});
  CHECK_THROWS(parse("[\"\\ud800\"]"), kCorrupt, "m/x.json", {"surrogate"});
  CHECK_THROWS(parse(std::string("{}\0{}", 5)), kCorrupt, "m/x.json", {"byte 3", "NUL"});
  CHECK_THROWS(parse(R"({"a": 1, "b": 2, "a": 3})"), kCorrupt, "m/x.json", {"key \"a\" appears twice"});
  CHECK_THROWS(parse(R"({"z": {"k": 1, "k": 1}})"), kCorrupt, "m/x.json", {"key \"k\" appears twice in \"z\""});
  CHECK_THROWS(parse(R"([{"k": 1, "k": 1}])"), kCorrupt, "m/x.json", {"key \"k\" appears twice in a list"});
  CHECK_THROWS(parse(R"({"\u0061": 1, "a": 1})"), kCorrupt, "m/x.json", {"key \"a\" appears twice"});

  const auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(parse(nested(64)).as<Json::Array>());
  CHECK_THROWS(parse(nested(65)), kCorrupt, "m/x.json", {"nested deeper than 64"});
  CHECK_THROWS(parse(std::string(1'000'000, '[')), kCorrupt, "m/x.json", {"nested deeper than 64"});

  std::string many = "[0";
  for (int i = 0; i < 4'000'000; ++i) many += ",0";
  CHECK_THROWS(parse(many + "]"), kCorrupt, "m/x.json", {"more than 4000000 values"});
}

// Text from a file must not reach a terminal with control characters, nor fill it.
void test_printable() {
  CHECK_EQ(printable("a\x1b[31m\n\xc3\xa9"), std::string("a\\x1b[31m\\x0a\\xc3\\xa9"));
  CHECK_EQ(printable(std::string(161, 'a')), std::string(160, 'a') + "...");
  CHECK_EQ(quote(""), std::string("\"\""));
}

void test_integers() {
  const ConfigReader c = reader(R"({"n": 8, "zero": 0, "real": 8.0, "text": "8", "none": null, "big": 1e30, "flag": true})");
  constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
  CHECK(c.has("n") && c.has("zero") && !c.has("none") && !c.has("absent"));
  CHECK_EQ(c.integer("n", 1, 8), 8);
  CHECK_EQ(c.integer_or("n", 3, 1, 8), 8);
  CHECK_EQ(c.integer_or("none", 3, 1, 8), 3);
  CHECK_EQ(c.integer_or("absent", -1, 1, 8), -1);  // the fallback may be out of range
  CHECK_THROWS(c.integer("n", 1, 7), kCorrupt, "n", {"config.json: n: expected an integer from 1 to 7, got the number 8"});
  CHECK_THROWS(c.integer("n", 9, kAny), kCorrupt, "n", {"of at least 9, got the number 8"});
  CHECK_THROWS(c.integer_or("zero", 3, 1, 8), kCorrupt, "zero", {"got the number 0"});
  CHECK_THROWS(c.integer("real", 1, 8), kCorrupt, "real", {"expected an integer"});
  CHECK_THROWS(c.integer("text", 1, 8), kCorrupt, "text", {"got the string \"8\""});
  CHECK_THROWS(c.integer("flag", 0, 8), kCorrupt, "flag", {"got true"});
  CHECK_THROWS(c.integer("big", 1, 8), kCorrupt, "big", {"got the number 1e+30"});
  CHECK_THROWS(c.integer("none", 1, 8), kCorrupt, "none", {"config.json: none: missing, expected an integer from 1 to 8"});
  CHECK_THROWS(c.integer("absent", 1, 8), kCorrupt, "absent", {"missing"});
}

void test_other_scalars() {
  const ConfigReader c = reader(R"({"eps": 1e-6, "theta": 10000, "on": true, "s": "silu", "none": null, "list": [1]})");
  CHECK_EQ(c.number("eps", 0, 1), 1e-6);
  CHECK_EQ(c.number("theta", 0, 1e9), 10000.0);
  CHECK_EQ(c.number_or("none", 0.5, 0, 1), 0.5);
  CHECK_THROWS(c.number("eps", 1e-5, 1), kCorrupt, "eps", {"expected a number from 1e-05 to 1, got the number 1e-06"});
  CHECK_THROWS(c.number("s", 0, 1), kCorrupt, "s", {"got the string \"silu\""});
  CHECK_THROWS(c.number("on", 0, 1), kCorrupt, "on", {"got true"});
  CHECK_THROWS(c.number("absent", 0, 1), kCorrupt, "absent", {"missing"});
  CHECK_EQ(c.boolean_or("on", false), true);
  CHECK_EQ(c.boolean_or("none", true), true);
  CHECK_THROWS(c.boolean_or("theta", false), kCorrupt, "theta", {"expected true or false, got the number 10000"});
  CHECK_EQ(c.string("s"), std::string("silu"));
  CHECK_EQ(c.string_or("none", "gelu"), std::string("gelu"));
  CHECK_THROWS(c.string("none"), kCorrupt, "none", {"missing, expected a string"});
  CHECK_THROWS(c.string_or("list", ""), kCorrupt, "list", {"expected a string, got a list of 1"});
}

void test_lists() {
  const ConfigReader c = reader(R"({"eos": 2, "many": [2, 5], "empty": [], "bad": [1, "x"], "far": [1, 99], "none": null})");
  CHECK_EQ(c.integers_or("many", {}, 0, 9), (std::vector<int64_t>{2, 5}));
  CHECK_EQ(c.integers_or("empty", {7}, 0, 9), (std::vector<int64_t>{}));
  CHECK_EQ(c.integers_or("none", {7}, 0, 9), (std::vector<int64_t>{7}));
  CHECK_THROWS(c.integers_or("eos", {}, 0, 9), kCorrupt, "eos", {"expected a list", "got the number 2"});
  CHECK_THROWS(c.integers_or("bad", {}, 0, 9), kCorrupt, "bad", {"item 1: expected an integer", "got the string \"x\""});
  CHECK_THROWS(c.integers_or("far", {}, 0, 9), kCorrupt, "far", {"item 1", "from 0 to 9, got the number 99"});
  CHECK_EQ(c.integer_or_list("eos", 0, 9), (std::vector<int64_t>{2}));
  CHECK_EQ(c.integer_or_list("many", 0, 9), (std::vector<int64_t>{2, 5}));
  CHECK_EQ(c.integer_or_list("absent", 0, 9), (std::vector<int64_t>{}));
  CHECK_THROWS(c.integer_or_list("eos", 3, 9), kCorrupt, "eos", {"or a list of such, got the number 2"});
  CHECK_THROWS(c.integer_or_list("bad", 0, 9), kCorrupt, "bad", {"item 1"});
}

void test_objects() {
  std::optional<ConfigReader> rope;
  {
    const ConfigReader c = reader(R"({"rope_parameters": {"rope_theta": "big", "x": {"y": 1}}, "n": 1, "none": null})");
    rope = c.object("rope_parameters");
    CHECK(!c.object("none") && !c.object("absent"));
    CHECK_THROWS(c.object("n"), kCorrupt, "n", {"expected an object, got the number 1"});
    CHECK_EQ(c.keys(), (std::vector<std::string>{"n", "none", "rope_parameters"}));
    CHECK_EQ(c.first_of({"absent", "none", "n"}), std::string("n"));
    CHECK_THROWS(c.first_of({"num_experts", "none"}), kCorrupt, "num_experts", {"num_experts or none: missing"});
  }
  // A part keeps the document alive.
  CHECK_EQ(rope->name(), std::string("config.json: rope_parameters"));
  CHECK_EQ(rope->object("x")->integer("y", 0, 1), 1);
  CHECK_THROWS(rope->number("rope_theta", 1, 1e9), kCorrupt, "rope_theta",
               {"config.json: rope_parameters: rope_theta: expected a number", "got the string \"big\""});
}

void test_dtype() {
  CHECK(!read_config_dtype(reader("{}")));
  CHECK(!read_config_dtype(reader(R"({"dtype": "auto"})")));
  CHECK(read_config_dtype(reader(R"({"dtype": "bfloat16"})")) == DType::kBF16);
  CHECK(read_config_dtype(reader(R"({"torch_dtype": "torch.float16"})")) == DType::kF16);
  CHECK(read_config_dtype(reader(R"({"dtype": null, "torch_dtype": "float32"})")) == DType::kF32);
  CHECK(read_config_dtype(reader(R"({"dtype": "float16", "torch_dtype": "float32"})")) == DType::kF16);
  CHECK_THROWS(read_config_dtype(reader(R"({"torch_dtype": "float8_e4m3fn"})")), ErrorCode::kUnsupported, "torch_dtype",
               {"config.json: torch_dtype: expected float32, bfloat16 or float16, got \"float8_e4m3fn\""});
  CHECK_THROWS(read_config_dtype(reader(R"({"dtype": 16})")), kCorrupt, "dtype", {"got the number 16"});
}

void test_open() {
  const TempFolder folder;
  CHECK_EQ(ConfigReader::open(folder.write("ok.json", "{\"n\": 1}\n")).integer("n", 1, 1), 1);
  CHECK_EQ(ConfigReader::open(folder.write("bom.json", "\xef\xbb\xbf{\"n\": 1}")).integer("n", 1, 1), 1);
  const std::string absent = folder.path("absent.json");
  CHECK_THROWS(ConfigReader::open(absent), ErrorCode::kNotFound, absent, {absent, "No such file"});
  CHECK_THROWS(ConfigReader::open(folder.path()), kCorrupt, folder.path(), {"found a folder"});
  const std::string empty = folder.write("empty.json", "");
  CHECK_THROWS(ConfigReader::open(empty), kCorrupt, empty, {"empty"});
  const std::string list = folder.write("list.json", "[1]");
  CHECK_THROWS(ConfigReader::open(list), kCorrupt, list, {list, "expected an object, got a list of 1"});
  const std::string large = folder.write("large.json", "{}" + std::string(16 << 20, ' '));
  CHECK_THROWS(ConfigReader::open(large), kCorrupt, large, {"16777218 bytes, over the limit of 16777216"});
}

}  // namespace

int main() {
  test_json_values();
  test_json_refusals();
  test_printable();
  test_integers();
  test_other_scalars();
  test_lists();
  test_objects();
  test_dtype();
  test_open();
  return check::result("test_config");
}
