import Testing

@testable import LocalAPI

@Suite("JSON")
struct JSONTests {
  @Test("reads every kind of value")
  func kinds() throws {
    let json = try JSONValue(
      parsing: #" {"a":null,"b":[true,false],"c":-12,"d":1.5,"e":"x","f":{},"g":[],"h":1e3} "#)
    #expect(json["a"]?.isNull == true)
    #expect(json["b"]?.arrayValue == [true, false])
    #expect(json["c"]?.intValue == -12)
    #expect(json["d"] == .double(1.5))
    #expect(json["e"]?.stringValue == "x")
    #expect(json["f"]?.objectValue?.isEmpty == true)
    #expect(json["g"]?.arrayValue?.isEmpty == true)
    #expect(json["h"]?.intValue == 1000)
    #expect(json["missing"] == nil)
  }

  @Test("keeps the order of members, and of a repeated key the last value")
  func order() throws {
    let json = try JSONValue(parsing: #"{"z":1,"a":2,"z":3}"#)
    #expect(json.serialized() == #"{"z":3,"a":2}"#)
    let keys = (0..<100).map { #""k\#($0 % 50)":\#($0)"# }.joined(separator: ",")
    let many = try #require(try JSONValue(parsing: "{\(keys)}").objectValue)
    #expect(many.count == 50)
    #expect(many["k7"] == 57)
  }

  @Test("joins surrogate pairs and refuses single ones")
  func surrogates() throws {
    #expect(try JSONValue(parsing: #""\ud83d\ude00\u00e9\n\/""#) == "😀é\n/")
    for text in [#""\ud83d""#, #""\ude00""#, #""\ud83d\u0041""#, #""\ud83dx""#] {
      #expect(throws: JSONError.self) { try JSONValue(parsing: text) }
    }
  }

  @Test(
    "says where a text is no JSON",
    arguments: [
      ("", 0), ("{", 1), ("[1,]", 3), ("{\"a\" 1}", 5), ("01", 0), ("-", 1), ("1.", 2), ("1e", 2), ("nul", 0),
      ("\"a", 0), ("\"\u{1}\"", 1), ("1 2", 2), ("\"\\x\"", 1), ("1e999", 0), ("{\"a\":1,}", 7), ("[", 1),
    ])
  func errors(text: String, offset: Int) {
    #expect { try JSONValue(parsing: text) } throws: { ($0 as? JSONError)?.offset == offset }
  }

  @Test("refuses bytes that are not UTF-8")
  func invalidUTF8() {
    #expect(throws: JSONError.self) { try JSONValue(parsing: [0x22, 0xff, 0x22]) }
    #expect(throws: JSONError.self) { try JSONValue(parsing: [0x22, 0xed, 0xa0, 0x80, 0x22]) }
  }

  @Test("refuses nesting deeper than the limit, however deep")
  func depth() throws {
    func nested(_ count: Int) -> String {
      String(repeating: "[", count: count) + String(repeating: "]", count: count)
    }
    _ = try JSONValue(parsing: nested(JSONValue.depthLimit))
    #expect(throws: JSONError.self) { try JSONValue(parsing: nested(JSONValue.depthLimit + 1)) }
    #expect(throws: JSONError.self) { try JSONValue(parsing: String(repeating: "[{\"a\":", count: 1_000_000)) }
  }

  @Test("writes what it reads, pretty or not")
  func roundTrip() throws {
    let json: JSONValue = [
      "text": "a\"b\\c\u{1}\n", "numbers": [0, -1, 9_223_372_036_854_775_807, 1.5, 1e300], "none": nil,
      "nested": ["empty": [], "object": [:]],
    ]
    #expect(try JSONValue(parsing: json.serialized()) == json)
    #expect(try JSONValue(parsing: json.serialized(pretty: true)) == json)
    #expect(JSONValue(dictionaryLiteral: ("a", [1])).serialized(pretty: true) == "{\n  \"a\": [\n    1\n  ]\n}")
    #expect(JSONValue.double(.infinity).serialized() == "null")
  }

  @Test("finds keys without regard to case")
  func ignoringCase() {
    let object: JSONObject = ["HostPort": 1, "hostport": 2]
    #expect(object.valueIgnoringCase("hostPort") == 1)
    #expect(object.valueIgnoringCase("hostport") == 2)
  }

  @Test("mutated texts are read or refused, and what is read survives writing")
  func fuzz() throws {
    let seed = UInt64.random(in: .min ... .max)
    var random = SplitMix64(state: seed)
    let original = Array(#"{"a":[1,-2.5e3,"x\u00e9\ud83d\ude00",true,null],"b":{"c":{"d":""}},"a":"é"}"#.utf8)
    for _ in 0..<20_000 {
      let text = random.mutate(original)
      guard let json = try? JSONValue(parsing: text) else { continue }
      #expect(try JSONValue(parsing: json.serialized()) == json, "seed \(seed): \(text)")
    }
  }
}

/// A small generator with a seed, so that a failure can be repeated.
struct SplitMix64: RandomNumberGenerator {
  var state: UInt64

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var value = state
    value = (value ^ value >> 30) &* 0xbf58_476d_1ce4_e5b9
    value = (value ^ value >> 27) &* 0x94d0_49bb_1331_11eb
    return value ^ value >> 31
  }

  /// One to four changes: a byte altered, removed, doubled, or the end cut off.
  mutating func mutate(_ bytes: [UInt8]) -> [UInt8] {
    var bytes = bytes
    for _ in 0..<Int.random(in: 1...4, using: &self) where !bytes.isEmpty {
      let place = Int.random(in: bytes.indices, using: &self)
      switch Int.random(in: 0..<5, using: &self) {
      case 0: bytes[place] = UInt8.random(in: .min ... .max, using: &self)
      case 1: bytes.remove(at: place)
      case 2: bytes.insert(bytes[place], at: place)
      case 3: bytes.swapAt(place, Int.random(in: bytes.indices, using: &self))
      default: bytes.removeLast(bytes.count - place)
      }
    }
    return bytes
  }
}
