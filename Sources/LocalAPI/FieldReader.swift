/// A field of a JSON document that is missing or has the wrong type or content.
public struct FieldError: Error, Hashable, CustomStringConvertible {
  /// What the document is: "endpoint record".
  public let document: String
  public let field: String
  public let reason: String

  public init(_ document: String, _ field: String, _ reason: String) {
    self.document = document
    self.field = field
    self.reason = reason
  }

  public var description: String { "\(document): \(field): \(reason)" }
}

/// Reads typed members of one JSON object; every error names the document and the field.
struct FieldReader {
  let object: JSONObject
  let document: String

  init(_ json: JSONValue, _ document: String) throws(FieldError) {
    guard let object = json.objectValue else { throw FieldError(document, "", "is no JSON object") }
    self.object = object
    self.document = document
  }

  func value<T>(_ field: String, _ kind: String, _ read: (JSONValue) -> T?) throws(FieldError) -> T {
    guard let json = object[field], !json.isNull else { throw FieldError(document, field, "is missing") }
    guard let value = read(json) else { throw FieldError(document, field, "is no \(kind)") }
    return value
  }

  func string(_ field: String) throws(FieldError) -> String { try value(field, "string") { $0.stringValue } }

  func integer(_ field: String) throws(FieldError) -> Int64 { try value(field, "whole number") { $0.intValue } }

  func strings(_ field: String) throws(FieldError) -> [String] {
    let elements = try value(field, "array") { $0.arrayValue }
    let strings = elements.compactMap(\.stringValue)
    guard strings.count == elements.count else {
      throw FieldError(document, field, "holds something else than strings")
    }
    return strings
  }

  /// nil where the member is missing or null, else what `read` makes of it.
  func optional<T>(_ field: String, _ read: (String) throws(FieldError) -> T) throws(FieldError) -> T? {
    guard let json = object[field], !json.isNull else { return nil }
    return try read(field)
  }
}
