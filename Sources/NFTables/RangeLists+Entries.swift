import DataplaneModel
import NetworkTypes

extension RangeLists {
  func entries(_ ranges: [AddressRange], _ family: IPFamily) -> [MapEntry] {
    Self.entries(number(of: ranges), ranges, family)
  }

  func forEachEntry(_ family: IPFamily, _ body: (MapEntry) -> Void) {
    forEach { number, ranges in Self.entries(number, ranges, family).forEach(body) }
  }

  fileprivate static func entries(_ number: UInt32, _ ranges: [AddressRange], _ family: IPFamily) -> [MapEntry] {
    ranges.filter { $0.first.family == family }.map { .sourceRange(list: number, $0) }
  }
}

extension RangeLists.Gone {
  func entries(_ family: IPFamily) -> [MapEntry] { RangeLists.entries(number, ranges, family) }
}
